"""Writes what `model/study_report.py` collected: Markdown for people, CSV for programs, pictures.

study.md                 the table, what is missing or failed, and what it was made with
study.csv                one row a schedule, means and spreads over its seeds
runs.csv                 one row a run
plots/SPLIT/             quality against state, and the pictures of `dsmr eval` for all schedules together
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsmr_export import figures, tables
from dsmr_export.model import run_folder, study
from dsmr_export.model.study_plan import Study
from dsmr_export.model.study_report import MEASURES
from dsmr_export.runtime.files import write_atomically
from dsmr_export.tables import mean_and_spread, number, size, speed

Report = Mapping[str, Any]
QUALITY = "quality-against-state"
PLAIN = ("schedule", "horizons", "kv_heads", "budget_tokens", "state_bytes", "over_budget", "parameters")
COST = ("tokens_per_s", "speed_ratio", "peak_bytes", "base_bytes")


def write(plan: Study, report: Report, out: Path) -> list[Path]:
    """Writes all of it into `out`; each file is complete under its name. Raises OutputError."""
    texts = {"study.csv": schedules_csv(report), "runs.csv": runs_csv(report)}
    with run_folder.writing(out):
        pictures = {split: _draw(plan, report, split, out / "plots" / split) for split in report["splits"]}
        linked = [
            path.relative_to(out).as_posix()
            for drawn in pictures.values()
            for path in drawn
            if path.suffix == ".svg"
        ]
        texts["study.md"] = markdown(report, linked)
        for name, text in texts.items():
            write_atomically(out / name, text.encode())
    return [*(out / name for name in texts), *(path for drawn in pictures.values() for path in drawn)]


def schedules_csv(report: Report) -> str:
    """Numbers as they are, nothing where there is none. Memory in bytes; NLL and KRCU in nats."""
    columns = [
        *PLAIN,
        *(
            f"{split}_{measure}_{figure}"
            for split in report["splits"]
            for measure in MEASURES
            for figure in ("mean", "spread", "runs")
        ),
        *COST,
    ]
    rows = []
    for row in report["schedules"]:
        values = {name: row[name] for name in (*PLAIN, *COST)}
        for split, measures in row["splits"].items():
            for measure, found in measures.items():
                values |= {f"{split}_{measure}_{figure}": value for figure, value in found.items()}
        rows.append(values)
    return _csv(columns, rows)


def runs_csv(report: Report) -> str:
    """`tokens` of a run are those it was trained on, those of a split the ones it was judged on."""
    plain = ("seed", "folder", "state", "step", "tokens", "best_perplexity", "reason")
    judged = ("perplexity", "nats_per_token", "krcu", "tokens", "pieces")
    columns = [
        "schedule",
        *plain,
        *(f"{split}_{figure}" for split in report["splits"] for figure in judged),
    ]
    rows = []
    for row in report["schedules"]:
        for run in row["runs"]:
            values = {"schedule": row["schedule"], **{name: run[name] for name in plain}}
            for split, found in run["splits"].items():
                values |= {f"{split}_{figure}": (found or {}).get(figure) for figure in judged}
            rows.append(values)
    return _csv(columns, rows)


def markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The study for people. pictures: paths of images to show, as seen from the file."""
    splits, rows = report["splits"], report["schedules"]
    seeds = len(report["seeds"])
    lines = [
        f"# {len(rows)} schedules, {report['budget_bytes']:,} bytes of recurrent state, "
        f"{seeds} seed{'' if seeds == 1 else 's'}",
        "",
        f"    {report['command']}",
        "",
        *_setting(report),
        "",
        *_table(
            [
                "schedule",
                "horizons",
                "kv heads",
                "tokens kept",
                "state (fp32)",
                "parameters",
                *(f"perplexity, {split}" for split in splits),
                *(f"nats to {rows[0]['schedule']}, {split}" for split in splits),
                *(f"KRCU, {split}" for split in splits),
                "training tokens/s (ratio)",
                "peak memory",
            ],
            [_cells(row, splits) for row in rows],
            left=2,
        ),
        "",
        *_notes(report),
        "",
        "## Seed by seed",
        "",
        *_table(
            ["schedule", "seed", "trained on", "run", *(f"perplexity, {split}" for split in splits)],
            [
                [
                    row["schedule"],
                    str(run["seed"]),
                    f"{run['tokens']:,} tokens",
                    run["state"],
                    *(number((run["splits"][split] or {}).get("perplexity"), ".3f") for split in splits),
                ]
                for row in rows
                for run in row["runs"]
            ],
            left=1,
        ),
    ]
    for title, key in (("Failed", "failed"), ("Not there yet", "missing"), ("To mind", "warnings")):
        if report[key]:
            lines += ["", f"## {title}", "", *(f"* {sentence}" for sentence in report[key])]
    if pictures:
        lines += ["", "## Pictures"]
        for path in pictures:
            *_, split, name = path.removesuffix(".svg").split("/")
            lines += ["", f"![{name.replace('-', ' ')}, {split}]({path})"]
    lines += ["", "## Made with", "", *_provenance(report)]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any], splits: Iterable[str]) -> list[str]:
    return [
        row["schedule"] + (" (over the budget)" if row["over_budget"] else ""),
        row["horizons"],
        str(row["kv_heads"]),
        f"{row['budget_tokens']:,}",
        f"{row['state_bytes']:,}",
        f"{row['parameters']:,}",
        *(_of_seeds(row["splits"][split]["perplexity"], ".3f", len(row["runs"])) for split in splits),
        *(mean_and_spread(row["splits"][split]["nats_vs_first"], "+.4f") for split in splits),
        *(mean_and_spread(row["splits"][split]["krcu"], "+.4f") for split in splits),
        speed(row),
        "–" if row["peak_bytes"] is None else size(row["peak_bytes"]),
    ]


def _of_seeds(found: Mapping[str, Any], spec: str, seeds: int) -> str:
    """Says so where some of the seeds are not there."""
    shown = mean_and_spread(found, spec)
    return f"{shown} ({found['runs']} of {seeds} seeds)" if 0 < found["runs"] < seeds else shown


def _setting(report: Report) -> list[str]:
    finished = [run for row in report["schedules"] for run in row["runs"] if run["state"] == "finished"]
    counts = sorted({run["tokens"] for run in finished})
    trained = "no run is finished yet"
    if counts:
        tokens = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        trained = f"{report['steps']:,} steps, {tokens} tokens per run"
    sizes = sorted({row["parameters"] for row in report["schedules"]})
    parameters = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    limit = report["eval_limit"]
    judged = f"{', '.join(report['splits'])}" + (f" (the first {limit} pieces of each)" if limit else "")
    return [
        f"* Data: {report['data']}; judged on {judged}",
        f"* Training: {trained}; {tables.seeds(report['seeds'])}",
        f"* Model: {parameters} parameters",
        f"* Budget: {report['budget_tokens']:,} tokens of history, {report['budget_bytes']:,} bytes in fp32",
    ]


def _notes(report: Report) -> Iterator[str]:
    counts = {
        found["perplexity"]["runs"] for row in report["schedules"] for found in row["splits"].values()
    } - {0, 1}
    if counts:
        rule = []
        if 2 in counts:
            rule.append("half the range of two seeds")
        if counts - {2}:
            rule.append("the sample standard deviation over three seeds or more")
        yield f"* ±: {', '.join(rule)}."
    yield "* Perplexity: per token, of the checkpoint with the lowest validation perplexity of each run."
    first = report["schedules"][0]["schedule"]
    yield (
        f"* Nats to {first}: nats per token less those of {first} with the same seed, which has the same "
        "pieces in the same order and, in a network of the same shape, the same first weights."
    )
    yield (
        "* KRCU: mean NLL increase in nats per token over the 8,192 tokens after the state was emptied at "
        "token 8,192; of pieces that are that long."
    )
    yield (
        "* State: keys and values of all horizons, one stream. The fused graph keeps 17 rows a layer more "
        "(docs/bundle.md)."
    )
    if report["measured"]:
        yield (
            "* Tokens/s and peak memory: of training, each schedule in a process of its own, in turns on one "
            "machine; the ratio is to the first schedule. Full states, so a run itself is faster at first."
        )
        bases = [row["base_bytes"] for row in report["schedules"] if row["base_bytes"]]
        if bases:
            yield f"* Peak memory is the whole process's; {size(max(bases))} were there before the network."
    if any(row["over_budget"] for row in report["schedules"]):
        yield "* Over the budget: a reference that says what more memory is worth, not one of equals."


def _provenance(report: Report) -> Iterator[str]:
    for what, found in report["provenance"].items():
        for facts in found:
            versions = facts.get("versions") or {}
            parts = [f"{name} {value}" for name, value in versions.items() if name not in ("platform", "gpu")]
            machine = [versions.get("gpu"), facts.get("processor"), versions.get("platform")]
            cores = facts.get("cores")
            shown = [str(part) for part in machine if part] + ([f"{cores} cores"] if cores else [])
            device = " ".join(str(facts[key]) for key in ("device", "precision") if facts.get(key))
            yield (
                f"* {what.capitalize()} on {device}: {', '.join(shown)}; {', '.join(parts)}; "
                f"git {', '.join(revision or 'unknown' for revision in facts['git'])}"
            )


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> Iterator[str]:
    """A Markdown table whose first `left` columns are text."""
    yield f"| {' | '.join(titles)} |"
    yield "|" + "|".join("---" if index < left else "--:" for index in range(len(titles))) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _draw(plan: Study, report: Report, split: str, folder: Path) -> list[Path]:
    """The pictures of a split, as far as something was judged on it."""
    points, evaluations = {}, {}
    for row in report["schedules"]:
        judged = [run for run in row["runs"] if run["splits"][split] is not None]
        if not judged:
            continue
        points[row["schedule"]] = figures.Quality(
            row["schedule"],
            row["state_bytes"],
            row["splits"][split]["perplexity"]["mean"],
            row["splits"][split]["perplexity"]["spread"],
        )
        root = folder.parent.parent
        known = (study.evaluation(plan, root / run["folder"], split) for run in judged)
        evaluations[row["schedule"]] = [one["figures"] for one in known if one is not None]
    if not points:
        return []
    figures.require_folder(folder)
    title = f"Perplexity on {split} against recurrent state"
    drawn = figures.save(
        figures.quality_against_state(points, title, report["budget_bytes"]), folder, QUALITY
    )
    return [*drawn, *figures.write_all(evaluations, folder)]
