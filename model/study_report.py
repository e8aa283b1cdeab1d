"""What a study found, from its folder alone: at any time, with what is still missing named.

`model/study_output.py` writes it.

Of two seeds the spread is half their range; of three or more it is the sample standard deviation (n - 1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from math import prod
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dsmr_export.model import checkpoint, run_folder, study
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.study_plan import PER_RUN, Entry, Run, Study, build, run_state_bytes
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.model.trainer import model_config
from dsmr_export.schedule import compact

MEASURES = ("perplexity", "nats_per_token", "nats_vs_first", "krcu")
"""Of every split: mean and spread over seeds.

nats_vs_first is nats per token less those of the study's first schedule with the same seed: runs of one seed
share weights and order, so it spreads much less than either of the two.
"""


def collect(plan: Study, out: Path) -> dict[str, Any]:
    """Everything that is known so far, ready for JSON.

    Keys: data, splits, eval_limit, seeds, steps, budget_tokens, budget_bytes, command; schedules (rows as
    `_row` makes them); measured (whether speed and memory are); missing, failed, warnings (sentences);
    provenance (what the runs' run.json and the evaluations say of versions, git revision and machine).
    Raises TrainingError if a run in `out` is not the study's.
    """
    runs = {run: study.progress(run, out / run.name) for run in plan.runs()}
    speed = study.measured(plan, out)
    vocabulary = len(tokens.default_tokenizer())
    rows: list[dict[str, Any]] = []
    for entry in plan.entries:
        found = [_run(plan, out / run.name, run, p) for run, p in runs.items() if run.entry == entry]
        rows.append(_row(plan, entry, found, rows[0]["runs"] if rows else found, speed, vocabulary))
    facts = [run_folder.read_facts(out / run.name) for run, p in runs.items() if p.state == "finished"]
    return {
        "data": plan.data_name,
        "splits": list(plan.eval_splits),
        "eval_limit": plan.eval_limit,
        "seeds": list(plan.seeds),
        "steps": plan.base.steps,
        "budget_tokens": plan.base.budget,
        "budget_bytes": plan.budget_bytes,
        "command": command(plan),
        "schedules": rows,
        "measured": speed is not None,
        "missing": list(_missing(plan, rows, speed is not None)),
        "failed": [
            f"{row['schedule']}, seed {run['seed']}: {run['reason']}"
            for row in rows
            for run in row["runs"]
            if run["state"] == "failed"
        ],
        "warnings": list(_warnings(rows, facts)),
        "provenance": _provenance(plan, out, rows, facts, speed),
    }


def spread(values: Sequence[float]) -> float | None:
    """Half the range of two values, the sample standard deviation of more; None of one."""
    if len(values) < 2:
        return None
    return (max(values) - min(values)) / 2 if len(values) == 2 else stdev(values)


def command(plan: Study) -> str:
    """The command that asks for this study, with every option that is not its default; no folder's path."""
    words = ["dsmr study", "--out DIR"]
    if plan.data is not None:
        words.append(f"--data {plan.data_name}")
    if plan.limit is not None:
        words.append(f"--limit {plan.limit}")
    for field in fields(TrainConfig):
        value = getattr(plan.base, field.name)
        if field.name not in PER_RUN and value != field.default:
            option = f"--{field.name.replace('_', '-')}"
            words.append(option if value is True else f"{option} {value}")
    words += [f"--schedule {entry.text}" for entry in plan.entries]
    words.append(f"--seeds {','.join(map(str, plan.seeds))}")
    words.append(f"--eval-split {','.join(plan.eval_splits)}")
    if plan.eval_limit is not None:
        words.append(f"--eval-limit {plan.eval_limit}")
    return " ".join(words)


def _row(
    plan: Study,
    entry: Entry,
    runs: list[dict[str, Any]],
    first: Sequence[Mapping[str, Any]],
    speed: Mapping[str, Any] | None,
    vocabulary: int,
) -> dict[str, Any]:
    """One schedule: what it is, its runs, and per split the mean and spread of MEASURES over them."""
    config = entry.config(plan.base, 0)
    schedule = build(config)
    shapes = checkpoint.expected_shapes(model_config(config, vocabulary))
    cost = speed["schedules"].get(entry.text, {}) if speed is not None else {}
    return {
        "schedule": entry.text,
        "horizons": compact(schedule.horizons),
        "kv_heads": config.kv_heads,
        "budget_tokens": schedule.budget_tokens,
        "state_bytes": run_state_bytes(config),
        "over_budget": run_state_bytes(config) > plan.budget_bytes,
        "parameters": sum(map(prod, shapes.values())),
        "splits": {split: _means(runs, first, split) for split in plan.eval_splits},
        "tokens_per_s": cost.get("tokens_per_s"),
        "speed_ratio": cost.get("ratio"),
        "peak_bytes": cost.get("peak_bytes"),
        "base_bytes": cost.get("base_bytes"),
        "cost_error": cost.get("error"),
        "runs": runs,
    }


def _run(plan: Study, folder: Path, run: Run, progress: study.Progress) -> dict[str, Any]:
    splits: dict[str, dict[str, float | None] | None] = {}
    for split in plan.eval_splits:
        known = study.evaluation(plan, folder, split) if progress.state == "finished" else None
        if known is None:
            splits[split] = None
            continue
        figures = known["figures"]
        splits[split] = {
            "perplexity": figures["perplexity"],
            "nats_per_token": figures["nats_per_token"],
            "krcu": figures["krcu"]["auc"],
            "tokens": figures["tokens"],
            "pieces": figures["pieces"],
        }
    return {"seed": run.seed, "folder": folder.name, **asdict(progress), "splits": splits}


def _means(
    runs: Iterable[Mapping[str, Any]], first: Iterable[Mapping[str, Any]], split: str
) -> dict[str, dict[str, Any]]:
    """first: the runs of the schedule that the others are compared with."""
    judged = {run["seed"]: run["splits"][split] for run in runs if run["splits"][split] is not None}
    other = {run["seed"]: run["splits"][split] for run in first if run["splits"][split] is not None}
    values = {
        measure: [figures[measure] for figures in judged.values() if figures[measure] is not None]
        for measure in ("perplexity", "nats_per_token", "krcu")
    }
    values["nats_vs_first"] = [
        figures["nats_per_token"] - other[seed]["nats_per_token"]
        for seed, figures in judged.items()
        if seed in other
    ]
    return {
        measure: {
            "mean": fmean(found) if found else None,
            "spread": spread(found),
            "runs": len(found),
        }
        for measure, found in values.items()
    }


def _missing(plan: Study, rows: Iterable[Mapping[str, Any]], measured: bool) -> Iterable[str]:
    for row in rows:
        for run in row["runs"]:
            name = f"{row['schedule']}, seed {run['seed']}"
            if run["state"] == "missing":
                yield f"{name}: not trained yet"
            elif run["state"] == "unfinished":
                yield f"{name}: trained for {run['step']:,} of {plan.base.steps:,} steps"
            elif run["state"] == "finished":
                gaps = [split for split, figures in run["splits"].items() if figures is None]
                if gaps:
                    yield f"{name}: not judged on {', '.join(gaps)}"
        if row["cost_error"] is not None:
            yield f"{row['schedule']}: speed and memory could not be measured ({row['cost_error']})"
    if not measured:
        yield "speed and memory: not measured"


def _warnings(rows: Iterable[Mapping[str, Any]], facts: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    done = [run for row in rows for run in row["runs"] if run["state"] == "finished"]
    for seed in sorted({run["seed"] for run in done}):
        counts = {run["tokens"] for run in done if run["seed"] == seed}
        if len(counts) > 1:
            yield f"the runs of seed {seed} have read between {min(counts):,} and {max(counts):,} tokens"
    if len({fact["pieces"]["fingerprint"] for fact in facts}) > 1:
        yield "the runs were trained on different pieces: compare only those of one fingerprint in run.json"
    for split in {split for run in done for split in run["splits"]}:
        judged = {run["splits"][split]["tokens"] for run in done if run["splits"][split] is not None}
        if len(judged) > 1:
            yield f"the runs were judged on different pieces of {split}: run dsmr study again"


def _provenance(
    plan: Study,
    out: Path,
    rows: Iterable[Mapping[str, Any]],
    facts: Sequence[Mapping[str, Any]],
    speed: Mapping[str, Any] | None,
) -> dict[str, list[dict[str, Any]]]:
    """The different answers to "with what", each once with all its git revisions."""
    judged = []
    for row in rows:
        for run in row["runs"]:
            for split, figures in run["splits"].items():
                known = study.evaluation(plan, out / run["folder"], split) if figures is not None else None
                if known is not None:
                    judged.append(known["made_with"])
    kept = ("versions", "git", "processor", "cores", "device", "precision")
    trained = [{key: fact[key] for key in kept if key in fact} for fact in facts]
    return {
        "trained": _different(trained),
        "judged": _different(judged),
        "measured": _different([] if speed is None else [speed["made_with"]]),
    }


def _different(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for value in values:
        rest = {name: fact for name, fact in value.items() if name != "git"}
        kept = found.setdefault(json.dumps(rest, sort_keys=True), {**rest, "git": []})
        if value.get("git") not in kept["git"]:
            kept["git"].append(value.get("git"))
    return list(found.values())
