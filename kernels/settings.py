"""Launch settings as data: for each kernel and architecture its tile, warps and pipeline depth, or why it is not used there.

Every entry is held to "no spills, shared memory within the device's limit" by ``tests/kernels/test_offline.py``, which
compiles it without a GPU. Entries were chosen by those compilations (registers, instruction kinds), not by timing, until a
table under ``kernels/bench/results`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

Architecture = Literal["sm_80", "sm_89", "sm_90"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

# Bytes of shared memory one program may have (CUDA programming guide, table of compute capabilities). An A100 has 166,912;
# its settings also serve 8.6, which has no more than 8.9.
SHARED_MEMORY = {"sm_80": 101_376, "sm_89": 101_376, "sm_90": 232_448}


@dataclass(frozen=True)
class Launch:
    """How a kernel is started: warps and pipeline stages, query or output rows, key or output columns and inner
    length of a tile (0: it has none), and whether tiles come through tensor memory descriptors."""

    num_warps: int
    num_stages: int = 1
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    tma: bool = False


@dataclass(frozen=True)
class Unavailable:
    """Why a kernel is not used on an architecture."""

    reason: str


Entry = Launch | Unavailable


def _everywhere(entry: Entry) -> dict[Architecture, Entry]:
    return dict.fromkeys(ARCHITECTURES, entry)


# One program a row of 5120: 128 threads hold 40 values each and load 16 bytes at a time.
_ROW = _everywhere(Launch(num_warps=4))

_NO_FP8 = Unavailable("sm_80 has no fp8; 16-bit values serve it")

_SETTINGS: dict[str, dict[Architecture, Entry]] = {
    "layer_norm": _ROW,
    "residual_gate_norm": _ROW,
    "rms_rope": _ROW,
    "quantise_rows": _everywhere(Launch(num_warps=8)),  # rows of 13,824: 64 values a thread
    "text_image_attention": {
        "sm_80": Launch(num_warps=8, num_stages=2, block_m=128, block_n=32),  # 64 keys spill
        "sm_89": Launch(num_warps=8, num_stages=2, block_m=128, block_n=32),
        "sm_90": Launch(num_warps=8, num_stages=3, block_m=128, block_n=64),  # 128 keys spill
    },
    "framewise_attention": _everywhere(Launch(num_warps=4, num_stages=1, block_m=64, block_n=64)),
    "class_attention_map": {
        "sm_80": Launch(num_warps=8, num_stages=3, block_m=128, block_n=32),
        "sm_89": Launch(num_warps=8, num_stages=3, block_m=128, block_n=32),
        "sm_90": Launch(num_warps=4, num_stages=2, block_m=64, block_n=64),
    },
    # Self-attention, dense or over blocks: block_n divides reference.K_BLOCK. Without descriptors registers hold 64 keys a tile
    # at most, and on sm_89, where the compiler keeps more at hand, 32 in 16 bits.
    "flash_16bit": {
        "sm_80": Launch(num_warps=8, num_stages=2, block_m=128, block_n=64),
        "sm_89": Launch(num_warps=8, num_stages=3, block_m=128, block_n=32),
        "sm_90": Launch(num_warps=8, num_stages=2, block_m=128, block_n=128, tma=True),
    },
    "flash_8bit_16bit": {
        "sm_80": Launch(num_warps=8, num_stages=2, block_m=128, block_n=64),
        "sm_89": Launch(num_warps=8, num_stages=2, block_m=128, block_n=64),
        "sm_90": Launch(num_warps=8, num_stages=2, block_m=128, block_n=128, tma=True),
    },
    "flash_8bit_fp8": {
        "sm_80": _NO_FP8,
        "sm_89": Launch(num_warps=8, num_stages=2, block_m=128, block_n=64),
        "sm_90": Launch(num_warps=8, num_stages=2, block_m=128, block_n=128, tma=True),
    },
    "quantise_qk": _ROW,
    "quantise_groups": _everywhere(Launch(num_warps=8, block_n=32)),  # block_n groups a program: it seldom has to do any of them
    "sample": _everywhere(Launch(num_warps=16)),
    # A tile of a hundred tokens and one head, 32 values a thread.
    "block_means": _everywhere(Launch(num_warps=16)),
    "quantise_values": _everywhere(Launch(num_warps=16)),
    "int8_linear": {
        "sm_80": Launch(num_warps=8, num_stages=3, block_m=128, block_n=128, block_k=128),
        "sm_89": Launch(num_warps=8, num_stages=3, block_m=128, block_n=128, block_k=128),
        "sm_90": Launch(num_warps=8, num_stages=4, block_m=128, block_n=128, block_k=128),
    },
    "gelu_tanh": _everywhere(Launch(num_warps=4, block_n=2048)),
}


def launch_entry(kernel: str, architecture: Architecture) -> Entry:
    """The entry of a kernel on an architecture."""
    return _SETTINGS[kernel][architecture]


def launch_settings(kernel: str, architecture: Architecture) -> Launch:
    """The settings of a kernel on an architecture that has it; dispatch has ruled the others out."""
    entry = _SETTINGS[kernel][architecture]
    if isinstance(entry, Unavailable):
        raise ValueError(f"{kernel} is not used on {architecture}: {entry.reason}")
    return entry


@contextmanager
def replaced(kernel: str, architecture: Architecture, launch: Launch) -> Iterator[None]:
    """Another setting in a shipped one's place, for a while: to try it out."""
    before = _SETTINGS[kernel][architecture]
    _SETTINGS[kernel][architecture] = launch
    try:
        yield
    finally:
        _SETTINGS[kernel][architecture] = before


def kernel_names() -> tuple[str, ...]:
    """Every kernel that has settings."""
    return tuple(_SETTINGS)
