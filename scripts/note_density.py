"""Note density of continuations: does a model go on about as densely as the music it has heard?

    python scripts/note_density.py [BUNDLE] [--split test] [--pieces 10] [--seconds 30] [--seed 1]

The first minute of each of 10 held-out pieces is the prompt (cut there, as if the pianist let go), continued
for 30 seconds with the settings that `dsmr play` has by default. A density is notes struck per second: of the
prompt from its first note to its end, of the continuation over its length. Plausible = 0.5 to 2 times the
prompt's. BUNDLE defaults to the prebuilt one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dsmr_export.corpus import Piece, pieces
from dsmr_export.errors import DsmrError
from dsmr_export.runtime import Bundle, Sampling
from dsmr_export.runtime.performance import Performance
from dsmr_export.runtime.play import SAMPLING, continue_prompt, own_pace, read_prompt

PROMPT_SECONDS = 60.0
PLAUSIBLE = (0.5, 2.0)


@dataclass(frozen=True)
class Density:
    """Notes per second of a prompt and of its continuation."""

    piece: str
    prompt: float
    continuation: float

    @property
    def ratio(self) -> float:
        return self.continuation / self.prompt

    @property
    def plausible(self) -> bool:
        return PLAUSIBLE[0] <= self.ratio <= PLAUSIBLE[1]


def densities(
    bundle: Bundle,
    found: Sequence[Piece],
    seconds: float = 30.0,
    seed: int = 1,
    sampling: Sampling = SAMPLING,
    prompt_seconds: float = PROMPT_SECONDS,
    pace: float | None = None,
) -> Iterator[Density]:
    """One `Density` a piece, each with the same seed. Raises what reading and playing raise."""
    per_second = 1000 / bundle.event_table.step_ms
    for piece in found:
        whole = read_prompt(bundle, piece.read(), piece.name).performance
        prompt = beginning(whole, round(prompt_seconds * per_second))
        heard = max(note.end for note in prompt) - prompt[0].start
        played = continue_prompt(bundle, prompt, seconds, sampling, seed, pace=pace).performance
        yield Density(piece.name, len(prompt) * per_second / heard, len(played) / seconds)


def beginning(performance: Performance, frames: int) -> Performance:
    """What begins before `frames`; what still sounds then ends there. The first note is always in it."""
    last = max(frames, performance[0].start + 1)
    return [note._replace(end=min(note.end, last)) for note in performance if note.start < last]


def show(results: Sequence[Density], console: Console) -> None:
    """One row a piece, and how many are plausible."""
    table = Table("piece", "prompt", "continuation", "ratio", "", title="notes per second")
    for result in results:
        figures = (f"{value:.2f}" for value in (result.prompt, result.continuation, result.ratio))
        table.add_row(result.piece, *figures, "" if result.plausible else "outside")
    console.print(table)
    inside = sum(result.plausible for result in results)
    low, high = PLAUSIBLE
    console.print(f"{inside} of {len(results)} within {low:g} – {high:g} times the prompt's", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path, help="bundle folder")
    parser.add_argument("--split", default="test", help="of the bundled corpus")
    parser.add_argument("--pieces", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each continuation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=SAMPLING.temperature)
    parser.add_argument("--top-p", type=float, default=SAMPLING.top_p)
    parser.add_argument("--pace", type=float, help="default: the bundle's")
    options = parser.parse_args()
    try:
        bundle = Bundle.open(options.bundle)
        found = pieces(split=options.split, limit=options.pieces)
        sampling = Sampling(options.temperature, top_p=options.top_p)
        results = list(densities(bundle, found, options.seconds, options.seed, sampling, pace=options.pace))
    except DsmrError as error:
        sys.exit(f"error: {error}")
    console = Console()
    show(results, console)
    pace = own_pace(bundle) if options.pace is None else options.pace
    settings = f"graph {bundle.default_graph}, seed {options.seed}, pace {pace}, {sampling}"
    console.print(settings, highlight=False)


if __name__ == "__main__":
    main()
