"""Launch settings as data: for each kernel and architecture its tile, warps and pipeline depth, or why it is not used there.

Every entry is held to "no spills, shared memory within the device's limit" by ``tests/kernels/test_offline.py``, which
compiles it without a GPU. Entries were chosen by those compilations (registers, instruction kinds), not by timing, until a
table under ``kernels/bench/results`` says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Architecture = Literal["sm_80", "sm_89", "sm_90"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

# Bytes of shared memory one program may have (CUDA programming guide, table of compute capabilities).
SHARED_MEMORY = {"sm_80": 166_912, "sm_89": 101_376, "sm_90": 232_448}


@dataclass(frozen=True)
class Launch:
    """How a kernel is started: warps and pipeline stages, query or output rows and key columns of a tile (0: it has none)."""

    num_warps: int
    num_stages: int = 1
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0


@dataclass(frozen=True)
class Unavailable:
    """Why a kernel is not used on an architecture."""

    reason: str


Entry = Launch | Unavailable


def _everywhere(entry: Entry) -> dict[Architecture, Entry]:
    return dict.fromkeys(ARCHITECTURES, entry)


# One program a row of 5120: 128 threads hold 40 values each and load 16 bytes at a time.
_ROW = _everywhere(Launch(num_warps=4))

_SETTINGS: dict[str, dict[Architecture, Entry]] = {
    "layer_norm": _ROW,
    "residual_gate_norm": _ROW,
    "rms_rope": _ROW,
    "quantise_rows": _everywhere(Launch(num_warps=4, block_n=2048)),
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


def kernel_names() -> tuple[str, ...]:
    """Every kernel that has settings."""
    return tuple(_SETTINGS)
