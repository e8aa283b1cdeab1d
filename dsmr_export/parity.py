"""Parity: how far each graph is from the network it came from, on whole pieces of real music.

Every piece is streamed through PyTorch once, and through every graph twice: in segments cut at random, and
token by token. Perplexity alone would not do as a gate, because signed changes cancel; the KL divergence
between the two predictions at every token does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export import corpus
from dsmr_export.errors import CheckpointError, DataError, MidiError, ParityError
from dsmr_export.runtime import metrics, play
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.stream import Stream

if TYPE_CHECKING:
    from dsmr_export.model.checkpoint import Checkpoint
    from dsmr_export.model.network import DSMR

Logits = NDArray[np.float32]
Ids = NDArray[np.integer[Any]]

REFERENCE_SEGMENT = 512


@dataclass(frozen=True)
class Gate:
    """Bounds that a graph must keep; None = not bounded.

    relative_change is |perplexity / reference - 1|, KL in nats.
    """

    relative_change: float
    kl_mean: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None

    def failures(self, figures: Mapping[str, Any]) -> Iterator[str]:
        """What of `figures` (the keys of `dsmr check --json`) lies outside the bounds, each as a phrase."""
        if not abs(figures["relative_change"]) <= self.relative_change:
            change = figures["relative_change"]
            yield f"relative perplexity change {change:+.2e} (bound {self.relative_change:.0e})"
        for key in ("kl_mean", "kl_max"):
            bound = getattr(self, key)
            if bound is not None and not figures[key] <= bound:
                yield f"{key} {figures[key]:.2e} (bound {bound:.0e})"
        if self.top1_agreement is not None and not figures["top1_agreement"] >= self.top1_agreement:
            yield f"top-1 agreement {figures['top1_agreement']:.4f} (bound {self.top1_agreement})"


EXACT = Gate(relative_change=1e-5, kl_max=1e-8)
QUANTIZED = Gate(relative_change=2e-3, kl_mean=5e-4, top1_agreement=0.98)
INT4 = Gate(relative_change=1e-2, kl_mean=1e-2)
"""16 steps instead of 256: five times int8's change of perplexity, twenty times its divergence; a most likely
token that was hardly ahead changes places often, so top-1 is not bounded."""


@dataclass
class Tally:
    """Sums over tokens, from which every figure follows. nll in nats, in float64."""

    tokens: int = 0
    nll: float = 0.0
    reference_nll: float = 0.0
    kl: float = 0.0
    kl_max: float = 0.0
    agreed: int = 0
    max_abs_logit: float = 0.0

    def add(self, tokens: Mapping[str, NDArray[np.float64]]) -> None:
        if not len(tokens["nll"]):
            return
        self.tokens += len(tokens["nll"])
        self.nll += float(tokens["nll"].sum())
        if "kl" in tokens:
            self.reference_nll += float(tokens["reference_nll"].sum())
            self.kl += float(tokens["kl"].sum())
            self.kl_max = float(np.maximum(self.kl_max, tokens["kl"].max()))  # keeps NaN, as max() may not
            self.agreed += int(tokens["agreed"].sum())
            self.max_abs_logit = float(np.maximum(self.max_abs_logit, tokens["max_abs_logit"].max()))

    def figures(self, referenced: bool) -> dict[str, Any]:
        perplexity = float(np.exp(self.nll / self.tokens))
        if not referenced:
            unknown = dict.fromkeys(
                ("relative_change", "kl_mean", "kl_max", "top1_agreement", "max_abs_logit")
            )
            return {"perplexity": perplexity, "reference_perplexity": None, **unknown}
        return {
            "perplexity": perplexity,
            "reference_perplexity": float(np.exp(self.reference_nll / self.tokens)),
            "relative_change": float(np.expm1((self.nll - self.reference_nll) / self.tokens)),
            "kl_mean": self.kl / self.tokens,
            "kl_max": self.kl_max,
            "top1_agreement": self.agreed / self.tokens,
            "max_abs_logit": self.max_abs_logit,
        }


@dataclass
class PositionTally:
    """One tally over everything and one per bin of position."""

    whole: Tally = field(default_factory=Tally)
    bins: list[Tally] = field(default_factory=lambda: [Tally() for _ in metrics.POSITION_EDGES])

    def add(self, tokens: Mapping[str, NDArray[np.float64]]) -> None:
        """tokens: name → [N], one value for each token of one piece in order."""
        self.whole.add(tokens)
        for tally, (start, stop) in zip(self.bins, metrics.position_bins(), strict=True):
            tally.add({name: values[start:stop] for name, values in tokens.items()})

    def figures(self, referenced: bool) -> dict[str, Any]:
        by_position = [
            {"from": start, "to": stop, "tokens": tally.tokens, **tally.figures(referenced)}
            for tally, (start, stop) in zip(self.bins, metrics.position_bins(), strict=True)
            if tally.tokens
        ]
        return {**self.whole.figures(referenced), "by_position": by_position}


def check(
    bundle: Bundle,
    pieces: Sequence[Ids],
    network: DSMR | None,
    graphs: Sequence[str] | None = None,
    stepwise: bool = True,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Streams whole pieces (ids [N], BOS first, EOS last) through the network and every graph, and compares.

    network: the reference under the bundle's schedule, or None when only the graphs' own perplexity can be
    had. stepwise: also token by token. progress is told how many more tokens went through one stream.
    Returns {graphs: {name: figures}, tokens, pieces, passed, failures}; figures hold those of the randomly
    cut stream, and those of the other under `token_by_token`.
    """
    names = list(graphs if graphs is not None else bundle.manifest.graphs)
    streams = {name: Stream(bundle, name, threads) for name in names}
    ways = ("cut", "step") if stepwise else ("cut",)
    tallies = {(name, way): PositionTally() for name in names for way in ways}
    rng = np.random.default_rng(seed)
    for ids in pieces:
        inputs, targets = np.asarray(ids)[:-1], np.asarray(ids)[1:]
        reference = None if network is None else _reference(network, inputs)
        progress(len(inputs) if network is not None else 0)
        for (name, way), tally in tallies.items():
            stream = streams[name]
            stream.reset()
            cuts = (
                random_cuts(len(inputs), bundle.graph(name).stream.max_segment, rng)
                if way == "cut"
                else [1] * len(inputs)
            )
            tally.add(_compare(_feed(stream, inputs, cuts), targets, reference))
            progress(len(inputs))
    referenced = network is not None
    figures = {name: tallies[name, "cut"].figures(referenced) for name in names}
    if stepwise:
        for name in names:
            figures[name]["token_by_token"] = tallies[name, "step"].whole.figures(referenced)
    failures = gate_failures(bundle, figures) if referenced else []
    return {
        "graphs": figures,
        "tokens": sum(len(ids) - 1 for ids in pieces),
        "pieces": len(pieces),
        "passed": not failures,
        "failures": failures,
    }


def find_reference(bundle: Bundle, folder: Path | None = None) -> tuple[Checkpoint | None, str]:
    """The checkpoint that a bundle was made from, or None and why it cannot be had here.

    folder: where it is; None = the bundled checkpoint. One that was asked for must do: raises CheckpointError
    if it is damaged or another one.
    """
    missing = [package for package in ("torch", "safetensors", "miditok") if find_spec(package) is None]
    if missing:
        return None, f"{missing[0]} is not installed (pip install 'dsmr-export[export]')"
    from dsmr_export.model import checkpoint as checkpoints

    wanted = str(bundle.manifest.provenance.get("checkpoint_sha256"))
    try:
        source = checkpoints.load(folder)
        if source.sha256 != wanted:
            raise CheckpointError(
                f"checkpoint {source.path} is not what the bundle was made from (SHA-256 "
                f"{source.sha256[:12]}…, not {wanted[:12]}…): give its own with --checkpoint"
            )
    except CheckpointError as error:
        if folder is not None:
            raise
        return None, str(error)
    return source, ""


def read_pieces(bundle: Bundle, found: Sequence[corpus.Piece], say: Callable[[str], None]) -> list[Ids]:
    """Pieces as ids (BOS first, EOS last) without miditok: what a device does.

    say is told which files are skipped, and why. Raises DataError if none can be read.
    """
    pieces: list[Ids] = []
    for piece, content in corpus.read_all(found):
        try:
            if isinstance(content, DataError):
                raise content
            reading = play.read_prompt(bundle, content, piece.name)
        except (DataError, MidiError) as error:
            say(f"skipped {error}")
            continue
        pieces.append(np.array(play.encode_piece(bundle, reading.performance)))
    if not pieces:
        raise DataError(f"none of {len(found)} files could be read")
    return pieces


def gate_of(quantization: Mapping[str, Any] | None) -> Gate:
    """The bounds of a graph by the manifest's `quantization`."""
    if quantization is None:
        return EXACT
    return INT4 if quantization.get("weights") == "int4" else QUANTIZED


def gate_failures(bundle: Bundle, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every bound that a graph breaks, in either way of feeding it, as `graph: what`."""
    found = []
    for name, values in figures.items():
        gate = gate_of(bundle.graph(name).quantization)
        found += [f"{name}: {failure}" for failure in gate.failures(values)]
        found += [
            f"{name}, token by token: {failure}"
            for failure in gate.failures(values.get("token_by_token", values))
        ]
    return list(dict.fromkeys(found))


def require(result: Mapping[str, Any]) -> None:
    """Raises ParityError with everything that failed."""
    if not result["passed"]:
        raise ParityError(
            "parity is outside the gates: "
            + "; ".join(result["failures"])
            + " (--no-gate writes the bundle anyway)"
        )


def random_cuts(tokens: int, longest: int, rng: np.random.Generator) -> list[int]:
    """Segment lengths 1 … longest, log-uniform so that short ones are frequent, that sum to `tokens`."""
    lengths: list[int] = []
    while tokens > 0:
        length = min(tokens, longest, int(np.exp(rng.uniform(0, np.log(longest + 1)))))
        lengths.append(length)
        tokens -= length
    return lengths


def _reference(network: DSMR, inputs: Ids) -> Logits:
    """The network's own logits [N, V], in segments of one length."""
    import torch

    state, parts = network.empty_state(), []
    with torch.no_grad():
        for start in range(0, len(inputs), REFERENCE_SEGMENT):
            segment = torch.from_numpy(inputs[start : start + REFERENCE_SEGMENT].astype(np.int64))[None]
            logits, state = network(segment, state)
            parts.append(logits[0].float().numpy())
    return np.concatenate(parts)


def _feed(stream: Stream, inputs: Ids, cuts: Sequence[int]) -> Logits:
    parts, start = [], 0
    for length in cuts:
        parts.append(stream.feed(inputs[start : start + length]))
        start += length
    return np.concatenate(parts)


def _compare(logits: Logits, targets: Ids, reference: Logits | None) -> dict[str, NDArray[np.float64]]:
    """Per-token values of one piece: nll, and how far it is from the reference, where there is one."""
    tokens: dict[str, NDArray[np.float64]] = {"nll": metrics.nll(logits, targets)}
    if reference is not None:
        tokens["reference_nll"] = metrics.nll(reference, targets)
        tokens["kl"] = metrics.kl_divergence(reference, logits)
        tokens["agreed"] = (logits.argmax(axis=1) == reference.argmax(axis=1)).astype(np.float64)
        tokens["max_abs_logit"] = np.abs(logits - reference).max(axis=1).astype(np.float64)
    return tokens
