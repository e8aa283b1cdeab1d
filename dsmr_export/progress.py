"""Progress bars, all on stderr: results on stdout can be piped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


@contextmanager
def counter(label: str, total: int, show: bool = True) -> Iterator[Callable[[int], None]]:
    """One bar of `total` things; the function it gives is told how many more are done."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn

    with _bar(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), show=show) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def stages(unit: str) -> Iterator[Callable[[str, float, float], None]]:
    """A bar for each stage; the function it gives is told the stage, what is done and what there is."""
    from rich.progress import BarColumn, TaskID, TextColumn

    amount = TextColumn("{task.completed:.0f} of {task.total:.0f} " + unit)
    with _bar(TextColumn("{task.description}"), BarColumn(), amount) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: float, total: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield advance


@contextmanager
def training(console: Console) -> Iterator[Callable[[float, float, float, float, float], None]]:
    """A run's bar, which stays when the run is over.

    The function it gives is told the share done (0 … 1), the step, its loss, tokens per second and the last
    validation perplexity (NaN before the first).
    """
    from rich.progress import BarColumn, TextColumn

    columns = (
        BarColumn(),
        TextColumn("step {task.fields[step]}"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("validation perplexity {task.fields[perplexity]}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
    )
    nan = float("nan")
    with _bar(*columns, console=console, transient=False) as bar:
        task = bar.add_task("train", total=1.0, step=0, loss=nan, perplexity="–", speed=0.0)

        def update(share: float, step: float, loss: float, speed: float, perplexity: float) -> None:
            known = "–" if math.isnan(perplexity) else f"{perplexity:.3f}"
            bar.update(task, completed=min(1.0, share), step=step, loss=loss, speed=speed, perplexity=known)

        yield update


def _bar(
    *columns: ProgressColumn, console: Console | None = None, transient: bool = True, show: bool = True
) -> Progress:
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    console = console or Console(stderr=True)
    if transient and not console.is_terminal:
        show = False  # it would leave an empty line in a log
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=transient, disable=not show)
