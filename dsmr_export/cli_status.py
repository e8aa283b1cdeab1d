"""`dsmr status`: what a running `dsmr play` says of itself, and a word to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from dsmr_export.errors import DsmrError
from dsmr_export.options import PATH, json_option
from dsmr_export.tables import number
from dsmr_export.terminal import print_json, stdout

SERVICE_SOCKET = Path("/run/dsmr/play.sock")
"""Where examples/raspberry-pi/dsmr-play.service listens."""


def no_options(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """Words may be negative numbers, so click lets everything through; options that do not exist end here."""
    for word in words:
        if word.startswith("-") and not re.match(r"-\.?\d", word):
            raise click.NoSuchOption(word)
    return words


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--socket",
    type=PATH,
    help="The --status-socket of that dsmr play.  [default: yours, or else the service's]",
)
@json_option
@click.argument("words", nargs=-1, callback=no_options)
def status(socket: Path | None, as_json: bool, words: tuple[str, ...]) -> None:
    """Ask a running dsmr play how it is, or tell it what to do: WORDS.

    \b
      pause, resume      stop playing, go on; what you play is heard all the same
      panic              all notes off, now
      undo 8, undo-bar   take back the last 8 seconds, the last bar
      reset              forget everything
      save NAME          keep the memory in the bank
      load NAME          go on from there
      bank, delete NAME  what the bank has; take one out
      set CONTROL VALUE  turn one of the controls
      quit               end it

    \b
    Example:
      dsmr status
      dsmr status undo 8
      dsmr status set temperature 0.9
      dsmr status --json --socket /run/dsmr/play.sock
    """
    from dsmr_export.runtime.live.status_socket import ask

    line = " ".join(words)
    found = ask(socket or _default_socket(), line)
    if found.get("ok") is False:
        raise DsmrError(f"dsmr play: {found.get('error')}")
    if as_json:
        print_json(found)
    elif "ok" in found:
        click.echo(found.get("said"))
    else:
        try:
            table = _table(found)
        except (KeyError, TypeError, ValueError) as error:
            raise DsmrError("the dsmr play that answers is of another version: use its own dsmr") from error
        stdout().print(table)


def _default_socket() -> Path:
    from dsmr_export.runtime.live.status_socket import default_path

    own = default_path()
    return SERVICE_SOCKET if not own.exists() and SERVICE_SOCKET.exists() else own


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(found):
        table.add_row(name, text)
    return table


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, how it is); what there is nothing to say about has no row."""
    yield found["mode"], f"{found['phase']}, up {_duration(found['uptime_s'])}"
    yield (
        "model",
        f"{found['graph']}, {found['position']:,} tokens read, {found['tokens_per_s']:,.0f} a second",
    )
    yield "notes", _notes(found)
    yield "late", _spread(found["lateness_ms"])
    yield "answers after", _spread(found["answer_ms"])
    if found["shifts"]:
        yield "moved", f"{found['shifts']} times, {found['shifted_s']:.2f} s in all: the model was late"
    yield "ahead", f"{found['queue_s']:.1f} s of music, {found['queue_events']} events"
    yield "remembers", "; ".join(_memory(found["memory"])) or "–"
    yield "state", _state(found)
    if found["controls"]:
        yield "controls", ", ".join(f"{name} {value:g}" for name, value in found["controls"].items())
    yield from found["ports"].items()
    yield "machine", ", ".join(_machine(found["machine"])) or "–"
    for index, line in enumerate(found["log"][-3:]):
        yield "" if index else "log", line


def _notes(found: Mapping[str, Any]) -> str:
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in found["left_out"].items() if count)
    return f"{found['heard_notes']:,} heard, {found['played_notes']:,} played" + (
        f"; left out: {left_out}" if left_out else ""
    )


def _spread(spread: Mapping[str, Any]) -> str:
    if not spread["count"]:
        return "–"
    p50, p99, most = (number(spread[key], ",.1f") for key in ("p50", "p99", "max"))
    return f"{p50} ms (median), {p99} (99 %), {most} (most) of {spread['count']:,}"


def _memory(layers: list[Mapping[str, Any]]) -> Iterator[str]:
    """Layers that hold the same stand together, as in layers 2–7: 256 of 256."""
    first = 0
    for index, layer in enumerate(layers):
        here = (layer["tokens"], layer["horizon"])
        following = layers[index + 1] if index + 1 < len(layers) else None
        if following is None or (following["tokens"], following["horizon"]) != here:
            start, end = layers[first]["layer"], layer["layer"]
            name = f"layer {end}" if start == end else f"layers {start}–{end}"
            yield f"{name}: {here[0]:,} of {here[1]:,} tokens"
            first = index + 1


def _state(found: Mapping[str, Any]) -> str:
    ago = found["autosaved_s_ago"]
    saved = "not saved by itself" if ago is None else f"saved {_duration(ago)} ago"
    return f"{found['state_bytes'] / 1e6:.2f} MB, undo {found['undo_bytes'] / 1e6:.2f} MB, {saved}"


def _machine(machine: Mapping[str, Any]) -> Iterator[str]:
    if machine["rss_bytes"] is not None:
        yield f"{machine['rss_bytes'] / 1e6:,.0f} MB"
    if machine["load"] is not None:
        yield f"load {machine['load'][0]:.2f}"
    if machine["cpu_temperature_c"] is not None:
        yield f"{machine['cpu_temperature_c']:.0f} °C"
    throttled = machine["throttled"] or {"now": [], "since_boot": []}
    yield from (f"{words} now" for words in throttled["now"])
    yield from (
        f"{words} since the boot" for words in throttled["since_boot"] if words not in throttled["now"]
    )


def _duration(seconds: float) -> str:
    """As in 3 h 5 min, 5 min 7 s, or 7 s."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
