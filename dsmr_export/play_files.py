"""`dsmr play` without an instrument: prompt and saved state in; MIDI, events, a picture and a state out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dsmr_export import piano_roll
from dsmr_export.errors import DsmrError, OutputError, OutputExistsError, StateError
from dsmr_export.options import say_graph
from dsmr_export.progress import stages
from dsmr_export.runtime import saved_state
from dsmr_export.runtime.bank import Bank
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.performance import KeyEvent, Performance
from dsmr_export.runtime.play import (
    Continuation,
    Performer,
    Progress,
    frames_of,
    hear_prompt,
    play_on,
    read_prompt,
)
from dsmr_export.runtime.sampling import Sampling
from dsmr_export.runtime.saved_state import SavedState
from dsmr_export.terminal import print_json, require

AHEAD = "ahead_frames"
"""In a state's ``extra``: frames that its last shift reaches beyond what was written (Continuation.ahead)."""

STDIN = Path("-")
_MIDI = b"MThd"


@dataclass(frozen=True)
class Job:
    """The command's options, checked to go together. ``seed`` None: 0, or the loaded state's generator."""

    sampling: Sampling
    prompt: Path | None
    save: Path | None
    seconds: float
    seed: int | None
    with_prompt: bool
    variations: int
    events: bool
    picture: Path | None
    save_state: str | None
    load_state: str | None
    bank: Path | None
    graph: str | None
    pace: float | None
    threads: int | None
    as_json: bool

    @property
    def plays(self) -> bool:
        """Whether there is more to do than to hear the prompt and to save the state."""
        return self.save is not None or self.events or self.picture is not None

    @property
    def files(self) -> list[Path]:
        """The MIDI files to write, one for each variation; none without --save."""
        if self.save is None or self.variations == 1:
            return [] if self.save is None else [self.save]
        numbers = range(1, self.variations + 1)
        return [self.save.with_name(f"{self.save.stem}-{n}{self.save.suffix}") for n in numbers]

    @property
    def seeds(self) -> list[int] | list[None]:
        """Of each variation; None: the loaded state's own generator goes on."""
        if self.seed is None and self.load_state is not None:
            return [None]
        first = self.seed or 0
        return list(range(first, first + self.variations))


def run(bundle: Bundle, job: Job) -> None:
    """Does the job, and says on stdout what came of it. Raises ``DsmrError``; whatever can be refused before
    the graph is loaded is."""
    if job.picture is not None:
        require("matplotlib", "pictures")
    prompt = read_prompt_of(bundle, job.prompt)
    state = loaded(bundle, job)
    frames_of(job.seconds, bundle.event_table.step_ms)
    check_outputs(bundle, job)
    performer = Performer(
        bundle, job.sampling, job.seed or 0, _graph(bundle, job, state), job.threads, job.pace
    )
    made: list[Continuation] = []
    with _progress(job) as progress:
        ahead = _hear(performer, job, prompt, state, progress)
        start = performer.snapshot()
        for number, seed in enumerate(job.seeds if job.plays else [], 1):
            if seed is not None:
                performer.restore(start.with_seed(seed))
            made.append(
                play_on(
                    performer,
                    job.seconds,
                    prompt,
                    ahead,
                    _numbered(progress, number, job.variations),
                    _event_printer(job, number, seed, bundle.event_table.step_ms),
                )
            )
            if job.files:
                made[-1].save(job.files[number - 1], job.with_prompt)
    if job.picture is not None:
        piano_roll.save(piano_roll.draw(made, _titles(job)), job.picture)
    kept = None
    if job.save_state is not None:
        extra = {AHEAD: made[-1].ahead if made else ahead}
        if state is not None and not made and prompt is None:
            extra = {**state.extra, **extra}  # nothing happened to it: a copy
        kept = _keep(bundle, job, SavedState(performer.snapshot(), extra=extra))
    _say(job, made, len(prompt or []), kept, performer)


# --- in -----------------------------------------------------------------------------------------------------


def read_prompt_of(bundle: Bundle, path: Path | None) -> Performance | None:
    if path is None:
        return None
    if path == STDIN:
        name = "standard input"
        reading = read_prompt(bundle, sys.stdin.buffer.read(), name)
    else:
        name = str(path)
        reading = read_prompt(bundle, path)
    if reading.dropped:
        click.echo(f"{name}: {reading.dropped} notes outside the model's pitches are left out", err=True)
    return reading.performance


def in_bank(bank: Path | None, text: str) -> bool:
    """Whether a state is named, not a file: there is a bank, no separator, and no such file."""
    return bank is not None and os.sep not in text and not os.path.isfile(text)


def loaded(bundle: Bundle, job: Job) -> SavedState | None:
    text = job.load_state
    if text is None:
        return None
    if job.bank is not None and in_bank(job.bank, text):
        state = Bank(job.bank, bundle).load(text)
    else:
        state = saved_state.read(text, bundle)
    if job.graph not in (None, state.graph):
        raise StateError(
            f"{text}: was saved with graph {state.graph}, which alone can go on from it: leave out "
            f"--graph {job.graph}"
        )
    return state


def _graph(bundle: Bundle, job: Job, state: SavedState | None) -> str | None:
    """The graph to run (None: this machine's choice), said on stderr; a loaded state decides."""
    say_graph(bundle, job.graph)
    if state is None or job.graph is not None or state.graph == bundle.default_graph:
        return job.graph
    click.echo(f"graph {state.graph} instead: {job.load_state} was saved with it", err=True)
    return state.graph


def _hear(
    performer: Performer, job: Job, prompt: Performance | None, state: SavedState | None, progress: Progress
) -> int:
    """The performer has heard state and prompt; how many frames it is ahead of time 0."""
    if state is None:
        hear_prompt(performer, prompt or [], progress)
        return 0
    performer.restore(state.moment if job.seed is None else state.moment.with_seed(job.seed))
    if prompt is not None:
        hear_prompt(performer, prompt, progress, anew=False)
        return 0
    ahead = state.extra.get(AHEAD, 0)
    return ahead if isinstance(ahead, int) and ahead > 0 else 0


# --- out ----------------------------------------------------------------------------------------------------


def check_outputs(bundle: Bundle, job: Job) -> None:
    """Refuses, before anything is played, what could not be written at the end or would destroy something."""
    outputs = [("--save", path, "a MIDI file", _MIDI) for path in job.files]
    if job.picture is not None:
        begins = piano_roll.FORMATS.get(job.picture.suffix.lower())
        if begins is None:
            raise OutputError(
                f"--picture {job.picture}: is no picture's name; let it end in "
                f"{', '.join(piano_roll.FORMATS)}"
            )
        outputs.append(("--picture", job.picture, f"a {job.picture.suffix[1:].lower()} picture", begins))
    if job.save_state is not None:
        if job.bank is not None and in_bank(job.bank, job.save_state):
            Bank(job.bank, bundle).path(job.save_state)
        else:
            outputs.append(("--save-state", Path(job.save_state), "a saved state", saved_state.MAGIC))
    seen: set[Path] = set()
    for option, path, what, begins in outputs:
        if job.prompt not in (None, STDIN) and os.path.exists(path) and path.samefile(str(job.prompt)):
            raise DsmrError(f"{option} {path} would replace the prompt: give another file")
        if path.absolute() in seen:
            raise DsmrError(f"{option} {path} is to be written twice: give each output its own file")
        seen.add(path.absolute())
        _check_replaceable(option, path, what, begins)


def _check_replaceable(option: str, path: Path, what: str, begins: bytes) -> None:
    """Only what this command could have written itself is replaced, or an empty file."""
    try:
        if not path.parent.is_dir():
            raise OutputError(
                f"{option} {path}: there is no folder {path.parent}; make it, or choose another"
            )
        if path.exists() and not path.is_file():
            raise OutputError(f"{option} {path}: cannot be written (not a file); give another name")
        with path.open("rb") as file:
            found = file.read(len(begins))
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"{option} {path}: cannot be written ({error.strerror or error}); choose another place"
        ) from error
    if found and found != begins:
        raise OutputExistsError(
            f"{option} {path} is there already and is not {what}: give another name, or move it away"
        )


def _keep(bundle: Bundle, job: Job, state: SavedState) -> Path:
    text = str(job.save_state)
    if job.bank is not None and in_bank(job.bank, text):
        return Bank(job.bank, bundle).save(text, state)
    path = Path(text)
    saved_state.write(path, SavedState(state.moment, path.stem, state.extra))
    return path


def _event_printer(job: Job, number: int, seed: int | None, step_ms: int) -> Callable[[KeyEvent], None]:
    if not job.events:
        return lambda event: None
    if job.variations > 1 and not job.as_json:
        click.echo(f"# variation {number}, seed {seed}")

    def show(event: KeyEvent) -> None:
        seconds = event.frame * step_ms / 1000
        if job.as_json:
            which = {"variation": number} if job.variations > 1 else {}
            print_json(
                {
                    **which,
                    "seconds": seconds,
                    "event": event.kind,
                    "pitch": event.pitch,
                    "velocity": event.velocity,
                }
            )
        else:
            click.echo(f"{seconds:.3f} {event.kind} {event.pitch} {event.velocity}")

    return show


@contextmanager
def _progress(job: Job) -> Iterator[Progress]:
    """A bar on stderr, but none beside events that run down the same screen."""
    if job.events:
        yield lambda stage, done, total: None
    else:
        with stages("s") as progress:
            yield progress


def _numbered(progress: Progress, number: int, variations: int) -> Progress:
    """A bar for each variation."""
    if variations == 1:
        return progress
    return lambda stage, done, total: progress(f"{stage} {number} of {variations}", done, total)


def _titles(job: Job) -> list[str]:
    if job.variations == 1:
        return ["" if seed is None else f"seed {seed}" for seed in job.seeds]
    return [f"variation {number}, seed {seed}" for number, seed in enumerate(job.seeds, 1)]


def _say(
    job: Job, made: list[Continuation], prompt_notes: int, state: Path | None, performer: Performer
) -> None:
    """What was made, on stdout; on stderr where stdout has the events."""
    rows: list[dict[str, Any]] = [
        {
            "saved": str(job.files[index]) if job.files else None,
            "notes": len(each.performance),
            "tokens": len(each.tokens),
            "seconds": job.seconds,
            "seed": seed,
        }
        for index, (each, seed) in enumerate(zip(made, job.seeds, strict=False))
    ]
    for row in rows:
        if not row["notes"]:
            what = row["saved"] or "the continuation"
            click.echo(
                f"warning: {what} has no notes in {job.seconds:g} s; try another seed, or more seconds",
                err=True,
            )
    if job.as_json and not job.events:
        others: dict[str, Any] = {
            "prompt_notes": prompt_notes,
            "picture": None if job.picture is None else str(job.picture),
            "state": None if state is None else str(state),
        }
        if state is not None:
            others |= {"position": performer.stream.position, "state_bytes": state.stat().st_size}
        print_json(
            {**others, "variations": rows} if job.variations > 1 else {**(rows[0] if rows else {}), **others}
        )
        return
    before = f"the prompt's {prompt_notes} notes, then " if job.with_prompt and prompt_notes else ""
    for row in rows:
        where = "" if row["saved"] is None else f"{row['saved']}: {before}"
        seed = "the loaded state's generator" if row["seed"] is None else f"seed {row['seed']}"
        click.echo(
            f"{where}{row['notes']} notes in {job.seconds:g} s of music, {row['tokens']} tokens, {seed}",
            err=job.events,
        )
    if job.picture is not None:
        click.echo(f"{job.picture}: the picture", err=job.events)
    if state is not None:
        size = state.stat().st_size
        click.echo(
            f"{state}: the state after {performer.stream.position} tokens, {size:,} bytes", err=job.events
        )
