"""llama.cpp through its C interface, on the same weights as a GGUF file.

It keeps one context for all layers, so it is measured twice: with as many tokens of state in all as the
schedule has, and with the longest horizon in every layer.
"""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench.peers import AbsentError, Peer, Work, load
from dsmr_export.bench.peers.apart import apart
from dsmr_export.bench.peers.gguf_file import ARCHITECTURE

PEERS: tuple[Peer, ...]
BLOCK = 32
"""Weights of one scale in Q8_0: every matrix must have rows of a multiple of it."""


class Setting(NamedTuple):
    """weights: F32 or Q8_0. reach: the longest horizon in every layer; else the budget spread evenly.

    state: F16, or Q8_0, which llama.cpp has with flash attention only.
    """

    weights: str
    reach: bool
    state: str


def context_tokens(horizons: tuple[int, ...], reach: bool) -> int:
    """Tokens of llama.cpp's context, the current one among them."""
    return max(2, max(horizons) if reach else sum(horizons) // len(horizons))


def write_weights(work: Work, kind: str, path: Path) -> None:
    """The work's weights as GGUF. Raises AbsentError where they cannot be stored like that."""
    from dsmr_export.bench.peers import gguf_file
    from dsmr_export.model import checkpoint

    if kind != "F32":
        shapes = {name: array.shape for name, array in checkpoint.load(work.checkpoint).weights.items()}
        for name, shape in shapes.items():
            if len(shape) == 2 and shape[1] % BLOCK:
                raise AbsentError(
                    f"{kind} needs rows of a multiple of {BLOCK} weights, {name} has {shape[1]}"
                )
    gguf_file.write(work.checkpoint, path, kind, max(work.horizons))


class LlamaSteps:
    """One token after a full context but for it; that token is removed again before the next.

    So the context stays full, and nothing is spent on shifting it, as an endless stream would have to.
    """

    kernel_ns = None

    def __init__(self, setting: Setting, work: Work) -> None:
        self._library = library = load("llama_cpp")
        path = work.folder / f"weights.{setting.weights}.gguf"
        if not path.exists():
            apart("writing GGUF", write_weights, work, setting.weights, path)
        self._silent = library.llama_log_callback(lambda level, text, data: None)  # kept: C calls it
        library.llama_log_set(self._silent, ctypes.c_void_p(0))
        model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not model:
            raise AbsentError("llama.cpp cannot load the GGUF file")
        tokens = context_tokens(work.horizons, setting.reach)
        parameters = library.llama_context_default_params()
        parameters.n_ctx = tokens
        parameters.n_batch = tokens
        parameters.n_threads = parameters.n_threads_batch = work.threads
        parameters.type_k = parameters.type_v = getattr(library, f"GGML_TYPE_{setting.state}")
        # Flash attention is slower on a CPU (docs/decisions.md), but a Q8_0 state exists only with it.
        wanted = "DISABLED" if setting.state == "F16" else "ENABLED"
        parameters.flash_attn_type = getattr(library, f"LLAMA_FLASH_ATTN_TYPE_{wanted}")
        parameters.no_perf = True
        self._context = library.llama_init_from_model(model, parameters)
        if not self._context:
            hint = "" if setting.state == "F16" else f": heads must be a multiple of {BLOCK} wide"
            raise AbsentError(f"llama.cpp cannot make a context of {tokens} tokens in {setting.state}{hint}")
        self._memory = library.llama_get_memory(self._context)
        self._vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._full, self._ids, self._next = tokens - 1, work.ids, 0
        for part in np.array_split(np.resize(work.ids, self._full), -(-self._full // 512)):
            self._decode(part.astype(np.int32))
        self._token = np.zeros(1, np.int32)

    def step(self) -> None:
        self._token[0] = self._ids[self._next]
        self._library.llama_memory_seq_rm(self._memory, 0, self._full, -1)
        self._decode(self._token)
        self._library.llama_get_logits(self._context)  # waits for them
        self._next = (self._next + 1) % len(self._ids)

    def logits(self) -> NDArray[np.float32]:
        pointer = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,)).copy()

    def _decode(self, tokens: NDArray[np.int32]) -> None:
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        failed = self._library.llama_decode(
            self._context, self._library.llama_batch_get_one(pointer, tokens.size)
        )
        if failed:
            raise AbsentError(f"llama.cpp cannot decode: llama_decode returned {failed}")


def _peer(name: str, setting: Setting) -> Peer:
    tokens = (
        "the longest horizon in every layer"
        if setting.reach
        else "as many tokens of state in all as the schedule, the same number in every layer"
    )
    state, attention = {
        "F16": ("float16 state", "no flash attention, faster so"),
        "Q8_0": ("8-bit state", "flash attention, which that needs"),
    }[setting.state]
    return Peer(
        name=name,
        what=f"llama.cpp, {setting.weights}, {'equal reach' if setting.reach else 'equal state'}, {state}",
        equal=f"same weights and shape, ReLU² for GELU (architecture {ARCHITECTURE}); {tokens}, {state}, "
        f"{attention}; attended in multiples of 256 tokens; the context full without ever shifting it; its "
        "forward alone by llama_decode, no sampling",
        needs=("llama_cpp", "gguf", "torch"),
        open=partial(LlamaSteps, setting),
    )


PEERS = (
    _peer("llama_cpp_q8_0", Setting("Q8_0", False, "F16")),
    _peer("llama_cpp_q8_0_reach", Setting("Q8_0", True, "F16")),
    _peer("llama_cpp_q8_0_state_q8_0", Setting("Q8_0", False, "Q8_0")),
    _peer("llama_cpp_q8_0_state_q8_0_reach", Setting("Q8_0", True, "Q8_0")),
    _peer("llama_cpp_f32", Setting("F32", False, "F16")),
    _peer("llama_cpp_f32_reach", Setting("F32", True, "F16")),
)
