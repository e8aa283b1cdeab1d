"""What a network's memory is worth: all figures of `dsmr eval`, and the two that take some history away.

Of the paper (Depth-Structured Music Recurrence, arXiv 2602.19816v2) only abstract and introduction were at
hand. The two definitions below are therefore ours, made to be exact; a piece has N tokens after BOS, and
its NLL under the whole history is that of `evaluate`.

Both follow from one fact about exact windows. A prediction of a layer with horizon h reads h tokens further
back than the layer below, so the logits at position t depend on the inputs t - Σ h_l … t and on no other.
Whoever empties the state at position r therefore changes the predictions at r … r + Σ h_l - 1 at most: from
r + Σ h_l on they are those of the whole history, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmr_export.errors import CheckpointError, DataError
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.checkpoint import Checkpoint
from dsmr_export.model.evaluate import Evaluation, evaluate, music, stream_nll
from dsmr_export.model.lanes import Ids
from dsmr_export.model.network import DSMR
from dsmr_export.runtime.events import EventTable
from dsmr_export.schedule import Schedule, explicit

if TYPE_CHECKING:
    from miditok import MIDILike

    from dsmr_export.model.data import TokenizedPiece

RETAIN = (1024, 4096, 8192, 16384)
"""Tokens of history that `truncation` keeps."""

Told = Callable[[float, float], None]
"""Told the tokens done and the tokens there are."""

Stages = Callable[[str, float, float], None]
"""Told the stage, the tokens done and the tokens there are; `progress.stages` gives one."""


def judge(
    source: Checkpoint | DSMR,
    pieces: Sequence[TokenizedPiece],
    tokenizer: MIDILike | None = None,
    device: str = "cpu",
    segment: int = 512,
    lanes: int | None = None,
    progress: Stages = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Everything that `dsmr eval --json` prints, ready for JSON.

    source: a checkpoint, computed on `device`, or a network where it is. tokenizer: that of the pieces, for a
    network alone (default: `tokenizer.default_tokenizer`); a checkpoint has its own. lanes: how many pieces
    are read side by side, by default 8 on a CPU and 32 elsewhere; it and segment do not change the result.

    Keys: perplexity (token-weighted), nats_per_token, nats_per_note, nats_per_second (of music; null where
    there is none), per_piece_mean (of perplexities), by_position (`Evaluation.by_position`), truncation and
    krcu (the functions below), tokens, pieces, notes, seconds, schedule {name, text, horizons,
    budget_tokens} and state_bytes (one stream's keys and values as this network holds them).

    Raises DataError if there is no piece or one is not of this vocabulary; CheckpointError if the
    checkpoint's tokenizer does not belong to its weights.
    """
    if isinstance(source, Checkpoint):
        tokenizer, schedule = source.tokenizer(), source.schedule
        network = source.network().to(device)
    else:
        network, schedule = source, explicit(source.horizons)
    table = EventTable.from_json(tokens.event_table(tokenizer or tokens.default_tokenizer()))
    ids: list[Ids] = [piece.ids for piece in pieces]
    _require_vocabulary(pieces, table, network.config.vocab_size)
    lanes = lanes or (8 if network.embedding.weight.device.type == "cpu" else 32)
    told = _counting(partial(progress, "whole pieces"), ids)
    evaluation = evaluate(network, ids, segment, lanes, told)
    told_cost, told_reset = partial(progress, "truncated histories"), partial(progress, "state reset")
    cost = truncation(network, ids, evaluation, segment=segment, lanes=lanes, progress=told_cost)
    curve = krcu(network, ids, evaluation, segment=segment, lanes=lanes, progress=told_reset)
    extents = [music(piece, table) for piece in ids]
    notes, seconds = sum(extent[0] for extent in extents), sum(extent[1] for extent in extents)
    return {
        "perplexity": evaluation.perplexity,
        "nats_per_token": evaluation.nats_per_token,
        "nats_per_note": evaluation.nats / notes if notes else None,
        "nats_per_second": evaluation.nats / seconds if seconds else None,
        "per_piece_mean": evaluation.per_piece_mean,
        "by_position": evaluation.by_position(),
        "truncation": cost,
        "krcu": curve,
        "tokens": evaluation.tokens,
        "pieces": len(pieces),
        "notes": notes,
        "seconds": seconds,
        "schedule": _about(schedule),
        "state_bytes": network.empty_state().nbytes,
    }


def truncation(
    network: DSMR,
    pieces: Sequence[Ids],
    evaluation: Evaluation,
    retain: Sequence[int] = RETAIN,
    window: int = 1024,
    segment: int = 512,
    lanes: int = 8,
    progress: Told = lambda done, total: None,
) -> list[dict[str, Any]]:
    """What a truncated history costs at the end of a piece. (Our definition: see the top of this file.)

    For each R of `retain`, over every piece with N > R + window: the state is empty, reads the R inputs
    before the last `window` ones at their own positions, and then predicts the last `window` tokens as usual
    (inputs N - window - R … N - 1, BOS being input 0). Compared with the NLL of the same tokens under the
    whole history, which `evaluation` holds.

    Rows {retain, window, pieces, tokens, nats_per_token, full_nats_per_token, increase}, increase =
    nats_per_token - full_nats_per_token, in nats; the last three are None where no piece is long enough.
    From R = Σ h_l on, increase is 0 up to rounding by construction. So of a longer R only the last Σ h_l
    inputs are read (a test compares with all of them). progress is told tokens done and to do.
    """
    reach = sum(network.horizons)
    long_enough = {r: [i for i, nll in enumerate(evaluation.nll) if len(nll) > r + window] for r in retain}
    # several R beyond the reach read the same: each (piece, inputs read before the window) is streamed once
    wanted = list(dict.fromkeys((i, min(r, reach)) for r in retain for i in long_enough[r]))
    origins = [len(pieces[i]) - 1 - window - read for i, read in wanted]
    stretches = [pieces[i][origin:] for (i, _), origin in zip(wanted, origins, strict=True)]
    told = _counting(progress, stretches)
    streamed = stream_nll(network, stretches, origins, segment, lanes, told)
    truncated = {key: nll[-window:] for key, nll in zip(wanted, streamed, strict=True)}
    rows = []
    for r in retain:
        found = [truncated[i, min(r, reach)] for i in long_enough[r]]
        whole = [evaluation.nll[i][-window:] for i in long_enough[r]]
        row: dict[str, Any] = {
            "retain": r,
            "window": window,
            "pieces": len(found),
            "tokens": window * len(found),
        }
        figures: dict[str, float | None] = dict.fromkeys(
            ("nats_per_token", "full_nats_per_token", "increase")
        )
        if found:
            kept, full = float(np.mean(found)), float(np.mean(whole))
            increase = float(np.mean(np.subtract(found, whole)))
            figures = {"nats_per_token": kept, "full_nats_per_token": full, "increase": increase}
        rows.append(row | figures)
    return rows


def krcu(
    network: DSMR,
    pieces: Sequence[Ids],
    evaluation: Evaluation,
    reset_at: int = 8192,
    width: int = 1024,
    bins: int = 8,
    segment: int = 512,
    lanes: int = 8,
    progress: Told = lambda done, total: None,
) -> dict[str, Any]:
    """KV-Reset Context Utilization: what emptying the state costs the tokens after it. (Our definition.)

    Of every piece with N > reset_at, inputs reset_at, reset_at + 1, … (BOS is input 0) are read by a state
    that is empty but goes on counting positions; the tokens at reset_at … reset_at + bins · width - 1 are
    compared with their NLL under the state that was kept, which `evaluation` holds.

    Returns {reset_at, pieces, auc, bins}; pieces is how many were long enough. A row of bins is {from, to,
    tokens, increase}: the mean over the tokens that pieces have at positions from … to - 1 of NLL after the
    reset - NLL with the state kept, in nats. Bins without tokens are left out. auc is the mean of the bins'
    increases, that is, the area under the reset curve divided by its width; None where no piece is long
    enough.

    By construction the influence of what was forgotten ends Σ h_l tokens after the reset: increase is 0 up to
    rounding in every bin with from ≥ reset_at + Σ h_l. With Σ h_l ≤ width that is every bin but the first.
    """
    long_enough = [i for i, nll in enumerate(evaluation.nll) if len(nll) > reset_at]
    stretches = [pieces[i][reset_at : reset_at + bins * width + 1] for i in long_enough]
    told = _counting(progress, stretches)
    streamed = stream_nll(network, stretches, [reset_at] * len(stretches), segment, lanes, told)
    increases = [
        nll - evaluation.nll[i][reset_at : reset_at + len(nll)]
        for i, nll in zip(long_enough, streamed, strict=True)
    ]
    rows = []
    for start in range(0, bins * width, width):
        values = [increase[start : start + width] for increase in increases]
        count = sum(len(part) for part in values)
        if count:
            edges = {"from": reset_at + start, "to": reset_at + start + width}
            rows.append({**edges, "tokens": count, "increase": float(np.concatenate(values).mean())})
    auc = float(np.mean([row["increase"] for row in rows])) if rows else None
    return {"reset_at": reset_at, "pieces": len(long_enough), "auc": auc, "bins": rows}


def _require_vocabulary(pieces: Sequence[TokenizedPiece], table: EventTable, vocab_size: int) -> None:
    if not pieces:
        raise DataError("there is no piece to evaluate: give other --data, or another --split")
    if len(table) != vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(table)} tokens, the network's vocab_size is {vocab_size}: "
            "evaluate with the tokenizer that it was trained with"
        )
    bos, eos = table.special_id("bos"), table.special_id("eos")
    for piece in pieces:
        ids = piece.ids
        if len(ids) < 2 or ids[0] != bos or ids[-1] != eos or int(np.max(ids)) >= vocab_size:
            raise DataError(
                f"{piece.name}: its ids do not go from BOS ({bos}) to EOS ({eos}) within {vocab_size} "
                "tokens: tokenize it with the checkpoint's tokenizer"
            )


def _counting(progress: Told, stretches: Sequence[Ids]) -> Callable[[int], None]:
    """Turns "so many more" into "so many of so many"."""
    total, done = sum(len(ids) - 1 for ids in stretches), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance


def _about(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "text": schedule.text,
        "horizons": list(schedule.horizons),
        "budget_tokens": schedule.budget_tokens,
    }
