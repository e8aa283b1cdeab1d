"""`dsmr play`: continue a MIDI file or a saved state, or begin a piece."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsmr_export import live_options
from dsmr_export.errors import BundleError
from dsmr_export.options import (
    PATH,
    STATE,
    bundle_argument,
    json_option,
    open_bundle,
    say_graph,
    threads_option,
)
from dsmr_export.play_config import config_option

if TYPE_CHECKING:
    from dsmr_export import play_files

OUTPUTS = ("save", "events", "picture", "save_state")
"""Of these at least one is given: else nobody would hear of what was played."""


@click.command()
@bundle_argument
@click.option("--prompt", type=PATH, help="MIDI file to continue; - = stdin.  [default: begin a piece]")
@click.option("--save", type=PATH, help="MIDI file to write.")
@click.option(
    "--seconds",
    type=float,
    default=30.0,
    show_default=True,
    help="Length of the continuation, in seconds of music.",
)
@click.option(
    "--seed",
    type=int,
    help="Same bundle, prompt, seed and machine: same notes.  [default: 0, or where the loaded state was]",
)
@click.option("--with-prompt", is_flag=True, help="Put the prompt before the continuation.")
@click.option(
    "--variations",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="So many continuations, with the seeds from --seed on: out-1.mid, out-2.mid, …",
)
@click.option("--events", is_flag=True, help="Print each event as it is made: seconds on|off pitch velocity.")
@click.option(
    "--picture", type=PATH, help="Piano roll of prompt and continuation to draw: a .png, .svg or .pdf."
)
@click.option(
    "--save-state",
    type=STATE,
    help="Write everything remembered at the end; without other outputs: after the prompt.",
)
@click.option(
    "--load-state", type=STATE, help="Go on from a saved state; --prompt, if any, is heard after it."
)
@click.option("--bank", type=PATH, help="Folder of saved states with names; states are then named by those.")
@click.option("--graph", help="Which graph to run.  [default: the bundle's]")
@click.option("--temperature", type=float, help="0 = always the most likely token.  [default: 1.0]")
@click.option("--top-k", type=int, help="Only the k most likely tokens; 0 = all.  [default: 0]")
@click.option(
    "--top-p", type=float, help="Only the most likely tokens that make up p; 1 = all.  [default: 0.98]"
)
@click.option(
    "--min-p", type=float, help="Only tokens at least so likely as this share of the likeliest.  [default: 0]"
)
@click.option(
    "--pace",
    type=float,
    help="Above 0 longer pauses, below 0 shorter; 0 = as they are.  [default: the bundle's]",
)
@threads_option
@live_options.live_options
@config_option
@json_option
def play(
    bundle: Path | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    **options: Any,
) -> None:
    """Continue a MIDI file, or begin a piece, and save it as MIDI; with MIDI ports: play with you, live.

    Everything that the model remembers can be saved and gone on from another day, to the same notes.

    \b
    Example:
      dsmr play --prompt in.mid --save out.mid --seconds 30 --seed 1
      dsmr play --prompt in.mid --variations 4 --save out.mid --picture out.png
      dsmr play --prompt in.mid --bank states --save-state "after the theme"
      dsmr play --bank states --load-state "after the theme" --events
      dsmr play --midi-in Keystation --midi-out FLUID
    """
    from dataclasses import replace

    from dsmr_export import play_files
    from dsmr_export.runtime.performer import SAMPLING

    if bundle is not None and bundle.is_file():
        raise BundleError(f"{bundle} is a file and no bundle; to continue a MIDI file give --prompt {bundle}")
    live = {name: options.pop(name) for name in live_options.NAMES}
    is_live = bool(live["midi_in"] or live["midi_out"] or live["virtual"])
    if is_live:
        _check_live(options, live)
    else:
        _check(options, live)
    given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampling = replace(SAMPLING, **{name: value for name, value in given.items() if value is not None})
    job = play_files.Job(sampling=sampling, **options)
    if is_live:
        _play_live(bundle, job, live)
    else:
        play_files.run(open_bundle(bundle), job)


def _play_live(bundle: Path | None, job: play_files.Job, live: dict[str, Any]) -> None:
    from dsmr_export import play_files, play_live

    settings = live_options.settings(live)
    opened = open_bundle(bundle)
    prompt, state = play_files.read_prompt_of(opened, job.prompt), play_files.loaded(opened, job)
    play_files.check_outputs(opened, job)
    autosave = _autosave_file(live, opened.identity)
    play_live.check_ports(live["midi_in"], live["midi_out"])
    say_graph(opened, job.graph if state is None else state.graph)
    given = {"temperature": job.sampling.temperature, "top-p": job.sampling.top_p, "density": live["density"]}
    play_live.run(
        opened,
        play_live.LiveJob(
            settings=settings,
            sampling=job.sampling,
            midi_in=live["midi_in"],
            midi_out=live["midi_out"],
            virtual=live["virtual"],
            prompt=prompt,
            state=state,
            seed=job.seed,
            graph=job.graph,
            threads=job.threads,
            pace=job.pace,
            controls={name: value for name, value in given.items() if _given(name.replace("-", "_"))},
            seconds=job.seconds if _given("seconds") else None,
            save=job.save,
            save_state=job.save_state,
            bank=job.bank,
            autosave_s=live["autosave"] or 0.0,
            autosave=autosave,
            status_socket=live["status_socket"],
            affinity=live["affinity"] or (),
            nice=live["nice"],
            realtime=live["realtime"],
            view=live["view"] and not job.as_json,
            log_level=live["log_level"],
            as_json=job.as_json,
        ),
    )


def _autosave_file(live: dict[str, Any], identity: str) -> Path | None:
    """Where it saves by itself, None where it does not. Raises ``OutputError`` where it could not."""
    from platformdirs import user_state_path

    from dsmr_export.errors import OutputError

    path: Path | None = live["autosave_file"]
    if live["autosave"] is None:
        return None
    if path is None:
        path = user_state_path("dsmr-export") / f"autosave-{identity[:12]}.dsmr"  # a bundle's own
        with suppress(OSError):  # then there is no folder
            path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.is_dir():
        raise OutputError(
            f"--autosave-file {path}: there is no folder {path.parent}; make it, or choose another"
        )
    return path


def _given(name: str) -> bool:
    """Whether an option was given, and not left at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def _check_live(options: dict[str, Any], live: dict[str, Any]) -> None:
    """Refuses what makes no sense with MIDI ports."""
    if live["virtual"] and (live["midi_in"] or live["midi_out"]):
        raise click.UsageError("--virtual makes ports of its own: leave out --midi-in and --midi-out")
    if not live["virtual"] and not live["midi_out"]:
        raise click.UsageError("--midi-in alone would not be heard: give --midi-out too, or --virtual")
    if live["mode"] != "loop" and not live["virtual"] and not live["midi_in"]:
        raise click.UsageError(f"--mode {live['mode']} listens: give --midi-in, or take --mode loop")
    for name in ("events", "picture", "with_prompt"):
        if options[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} is for files, not for MIDI ports")
    if options["variations"] > 1:
        raise click.UsageError("--variations is for files, not for MIDI ports")
    if options["seconds"] is not None and not 0 < options["seconds"] < math.inf:
        raise click.UsageError(f"--seconds {options['seconds']:g}: give seconds above 0")
    if live["autosave"] is not None and not 0.1 <= live["autosave"] <= 86_400:
        raise click.UsageError("--autosave: give seconds, 0.1 to 86400")
    if live["autosave_file"] and live["autosave"] is None:
        raise click.UsageError("--autosave-file is where --autosave SECONDS saves: give that too")


def _check(options: dict[str, Any], live: dict[str, Any]) -> None:
    """Refuses options that do not go together, as usage: before anything is opened."""
    lone = sorted(name for name in live if _given(name))
    if lone:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in lone)
        raise click.UsageError(f"{flags}: only with MIDI ports; give --midi-in and --midi-out, or --virtual")
    if not any(options[name] for name in OUTPUTS):
        raise click.UsageError("give at least one of --save, --events, --picture, --save-state")
    if options["bank"] and not (options["save_state"] or options["load_state"]):
        raise click.UsageError("--bank is where --save-state and --load-state look: give one of them")
    if options["variations"] > 1:
        if options["save_state"]:
            raise click.UsageError("--save-state keeps one end, and --variations has several: leave one out")
        if options["load_state"] and options["seed"] is None:
            raise click.UsageError("--variations of a loaded state need a --seed, from which they count")
    for name in ("save_state", "load_state"):
        if options[name] == "":
            raise click.UsageError(f"--{name.replace('_', '-')} is empty: give a file, or a name in --bank")
