"""One worker's part of a training run: a step, a validation, what is saved and how it is brought back."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsmr_export import schedule as schedules
from dsmr_export.errors import FailedRunError, TrainingError
from dsmr_export.model import checkpoint, data, distributed, run_folder
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.dealing import Dealer, PieceSource
from dsmr_export.model.distributed import Workers, noticing_the_dead
from dsmr_export.model.evaluate import evaluate
from dsmr_export.model.lanes import IGNORE, Batch, Ids, Lanes
from dsmr_export.model.network import DSMR, RecurrentState
from dsmr_export.model.train_config import TrainConfig

BEST = "validation_perplexity"
"""Key in the config.json of best/."""


@dataclass
class Meter:
    """What has been done so far; saved with the run."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    best_perplexity: float = math.inf
    validations: list[float] = field(default_factory=list)


class Trainer:
    """One worker's part of a run: network, optimizer, its lanes and recurrent state, how they are saved and
    brought back.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        pieces: Sequence[data.TokenizedPiece],
        tokenizer: Any,
        workers: Workers | None = None,
        about: Mapping[str, str] | None = None,
        fingerprint: str | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.workers = workers or Workers()
        self.about: Mapping[str, str] = about or {}
        self.origin: Mapping[str, Any] = origin or {}
        self.config, self.out, self.tokenizer, self.device = config, out, tokenizer, self.workers.device
        self.schedule = schedules.build(config.schedule, config.layers, config.budget)
        self.network = DSMR(model_config(config, len(tokenizer)), self.schedule.horizons, config.dropout)
        self.network.initialize(torch.Generator().manual_seed(config.seed))
        self.network.to(self.device)
        self.precision = _precision(config.precision, self.device)
        self.forward = self.workers.wrap(
            torch.compile(self.network, dynamic=False) if config.compile else self.network
        )
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self.network.parameters() if p.dim() > 1],
                    "weight_decay": config.weight_decay,
                },
                {"params": [p for p in self.network.parameters() if p.dim() == 1], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.source = PieceSource(pieces, tokenizer, config)
        self.fingerprint = fingerprint or self.source.fingerprint
        self.dealer = Dealer(self.source, config.lanes)
        self.own = self.workers.lanes(config.lanes)
        self.lanes = Lanes(
            self.source.draw, len(self.own), config.segment, lambda lane: self.dealer.take(self.own[lane])
        )
        self.state_dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.state = self.network.empty_state(len(self.own), dtype=self.state_dtype)
        self.meter = Meter()
        self.stopping = False

    def progress(self) -> float:
        """How far the run is, 0 … 1."""
        if self.config.steps is not None:
            return self.meter.step / self.config.steps
        assert self.config.minutes is not None
        return self.meter.elapsed_s / (60 * self.config.minutes)

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to `final_learning_rate` of the peak."""
        warmup = min(1.0, (self.meter.step + 1) / self.config.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
        floor = self.config.final_learning_rate
        return self.config.learning_rate * warmup * (floor + (1 - floor) * cosine)

    def step(self, stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """One optimizer step over `accumulate` segments of every lane of every worker; returns the log's row.

        The loss is the mean over all tokens that all workers predict: masked tails count nothing, and a
        worker with fewer tokens weighs less. If `stop` says so on any worker, `stopping` is true on all
        of them afterwards. Raises TrainingError if the loss diverges or memory runs out.
        """
        began = time.monotonic()
        batches = [self._batch() for _ in range(self.config.accumulate)]
        (total_tokens,) = self.workers.sum(sum(batch.tokens for batch in batches))
        learning_rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._seed_dropout()
        with explaining(self.config, self.device, f"at step {self.meter.step}"):
            own = torch.zeros((), device=self.device)
            for last, batch in zip([*[False] * (len(batches) - 1), True], batches, strict=True):
                with nullcontext() if last else self.workers.without_sync(self.forward):
                    own += self._backward(batch, total_tokens)
            grad_norm = float(
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
            )
            loss, took, stops = self.workers.sum(float(own), self._clock(began), stop())
            self._require_convergence(loss, grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.stopping = stops > 0
        self.meter.step += 1
        self.meter.tokens += int(total_tokens)
        self.meter.elapsed_s += took
        return {
            "step": self.meter.step,
            "epoch": self.meter.tokens // int(self.source.lengths.sum()),
            "tokens": self.meter.tokens,
            "elapsed_s": round(self.meter.elapsed_s, 2),
            "learning_rate": learning_rate,
            "loss": loss,
            "grad_norm": grad_norm,
            "tokens_per_s": round(total_tokens / took, 1),
        }

    def validate(self, pieces: Sequence[Ids]) -> float:
        """Perplexity of whole pieces, shared out among the workers; the best so far is written to `best/`."""
        began = time.monotonic()
        longest_first = sorted(pieces, key=len, reverse=True)
        own = longest_first[self.workers.rank :: self.workers.count]
        with explaining(self.config, self.device, f"validating at step {self.meter.step}"):
            found = evaluate(self.network, own, self.config.segment, len(self.own)).nll if own else []
            nats, total_tokens, took = self.workers.sum(
                sum(float(piece.sum()) for piece in found),
                sum(len(piece) - 1 for piece in own),
                self._clock(began),
            )
        perplexity = math.exp(min(nats / total_tokens, 700.0)) if math.isfinite(nats) else math.nan
        self.meter.elapsed_s += took
        if not math.isfinite(perplexity):
            raise self._diverged(f"validation perplexity is {perplexity}")
        self.meter.validations.append(perplexity)
        if perplexity < self.meter.best_perplexity:
            self.meter.best_perplexity = perplexity
            self._save_checkpoint("best", {BEST: perplexity})
        return perplexity

    def save(self) -> None:
        """Writes `last/`, then training.safetensors, gathered from all workers.

        The latter holds the tensors of network, optimizer and recurrent state, and where each lane stands;
        the rest is its metadata. Raises OutputError; the file is then as it was.
        """
        self._save_checkpoint("last")
        tensors = {f"network.{n}": t for n, t in self.network.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        by_lane = {"position": self.state.position, "length": self.state.length, "cursor": self._cursor()}
        for layer, (keys, values) in enumerate(self.state.layers):
            by_lane |= {f"{layer}.key": keys, f"{layer}.value": values}
        tensors |= {f"state.{name}": self.workers.gather(tensor) for name, tensor in by_lane.items()}
        if not self.workers.leads:
            return
        metadata = {
            "format": run_folder.FORMAT,
            "config": json.dumps(asdict(self.config)),
            "data": self.fingerprint,
            "pieces": str(len(self.source.pieces)),
            "tokenizer": self._tokenizer_digest(),
            "meter": json.dumps(asdict(self.meter)),
            "launch": distributed.launch(),
            "origin": json.dumps(self.origin),
        }
        copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
        checkpoint.save_tensors(self.out / run_folder.TRAINING, copies, metadata)

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Brings back what `save` wrote; the same steps follow as if the run had never stopped.

        Raises TrainingError if the run was trained on other pieces, or with another tokenizer.
        """
        if metadata.get("tokenizer") != self._tokenizer_digest():
            raise TrainingError(
                f"{self.out} was trained with another tokenizer ({self.out / 'last' / 'tokenizer.json'}): "
                "resume with the version of miditok and dsmr-export in its run.json"
            )
        if metadata.get("data") != self.fingerprint:
            raise TrainingError(
                f"{self.out} was trained on other pieces: {metadata.get('pieces')} when it began, "
                f"{len(self.source.pieces)} now, or their content or the validation pieces changed; resume "
                "with the --data and --limit of its start, as run.json has them"
            )
        self.network.load_state_dict(_strip(tensors, "network."))
        optimizer = self.optimizer.state_dict()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _strip(tensors, "optimizer.").items():
            index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({**optimizer, "state": slots})
        own = slice(self.own.start, self.own.stop)
        state = {name: value[own].to(self.device) for name, value in _strip(tensors, "state.").items()}
        self.state = RecurrentState(
            [
                (state[f"{layer}.key"].to(self.state_dtype), state[f"{layer}.value"].to(self.state_dtype))
                for layer in range(self.config.layers)
            ],
            state["position"],
            state["length"],
        )
        draws, offsets = state["cursor"].T.tolist()
        for lane, draw in zip(self.own, draws, strict=True):
            self.dealer.seek(lane, draw)
        self.lanes.seek({"next_draw": 0, "draws": draws, "offsets": offsets})
        self.meter = Meter(**json.loads(metadata["meter"]))
        # best/ may be newer than the save, if the process was killed between the two.
        self.meter.best_perplexity = min(self.meter.best_perplexity, self._stored_best())

    def _batch(self) -> Batch:
        batch = self.lanes.next()
        assert batch is not None, "a training source never ends"
        return batch

    def _backward(self, batch: Batch, total_tokens: float) -> Tensor:
        """Adds this batch's gradient; returns its part of the loss, float32 []."""
        with self._autocast():
            state = self.state.reset(batch.starts.to(self.device))
            logits, state = self.forward(batch.input_ids.to(self.device), state)
            targets = batch.targets.to(self.device).flatten()
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum"
            )
        self.state = state.detach()  # frees the one before
        part = nll / total_tokens
        (part * self.workers.count).backward()  # DistributedDataParallel takes the mean over workers
        self.state = self.state.compact()
        return part.detach()

    def _clock(self, began: float) -> float:
        """Seconds since then by worker 0's clock, to be summed: how far a run is must be the same on all."""
        return time.monotonic() - began if self.workers.leads else 0.0

    def _stored_best(self) -> float:
        """Validation perplexity of the checkpoint in best/."""
        try:
            return float(json.loads((self.out / "best" / checkpoint.CONFIG).read_text())[BEST])
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _seed_dropout(self) -> None:
        """Dropout of a step follows from seed, step and worker, so that nothing of it has to be saved."""
        if self.config.dropout:
            sequence = np.random.SeedSequence([self.config.seed, self.meter.step, self.workers.rank])
            torch.manual_seed(int(sequence.generate_state(1)[0]))

    def _cursor(self) -> Tensor:
        """Where each lane of this worker stands: (draw, offset), int64 [lanes, 2]."""
        cursor = self.lanes.cursor()
        return torch.tensor([cursor["draws"], cursor["offsets"]]).T

    def _tokenizer_digest(self) -> str:
        return hashlib.sha256(tokens.to_json(self.tokenizer).encode()).hexdigest()

    def _require_convergence(self, loss: float, grad_norm: float) -> None:
        """A loss that is not finite, or twice that of a uniform guess, will not come back by itself."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise self._diverged(f"loss is {loss}, the gradient's norm {grad_norm}")
        if loss > 2 * math.log(self.network.config.vocab_size):
            raise self._diverged(f"loss is {loss:.2f}, more than twice that of a uniform guess,")

    def _diverged(self, what: str) -> FailedRunError:
        exists = (self.out / run_folder.TRAINING).exists()
        saved = f"what {self.out} holds is from before" if exists else "nothing was saved"
        return FailedRunError(
            f"{what} at step {self.meter.step}; {saved}: start a run with a lower --learning-rate"
        )

    def _save_checkpoint(self, name: str, about: Mapping[str, float] | None = None) -> None:
        if self.workers.leads:
            text = tokens.to_json(self.tokenizer)
            together: dict[str, str | float] = {**self.about, **(about or {})}
            checkpoint.save(self.out / name, self.network, self.schedule, text, about=together)


def model_config(config: TrainConfig, vocab_size: int) -> ModelConfig:
    """The network's sizes. Raises CheckpointError on sizes that cannot make one."""
    return ModelConfig(
        config.layers,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.d_model,
        config.d_ff,
        vocab_size,
    )


@contextmanager
def explaining(config: TrainConfig, device: torch.device, where: str) -> Iterator[None]:
    """Says which options to turn when memory runs out or torch.compile cannot be had, and who is gone."""
    try:
        with noticing_the_dead():
            yield
    except (RuntimeError, MemoryError) as error:
        first = first_line(error)
        if is_out_of_memory(error):
            raise FailedRunError(
                f"out of memory {where} on {device} ({first}): lower --lanes ({config.lanes}), --segment "
                f"({config.segment}) or --budget ({config.budget}); --accumulate makes up for fewer lanes"
            ) from error
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise TrainingError(f"--compile does not work here ({first}): leave it out") from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU, in Python, or as torch says it of a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """What an error says, without its details; its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _precision(asked: str, device: torch.device) -> str:
    """fp32 or bf16."""
    if asked != "auto":
        return asked
    real = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if real else "fp32"


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
