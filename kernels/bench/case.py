"""What a benchmark case is: an operation with its floor, its bar, its peers, and the truth for a sample of its output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

WIDTH, HEADS, HEAD_DIM, FFN = 5120, 40, 128, 13_824
FP8 = torch.float8_e4m3fn

SAMPLE = 256
"""Rows that are held against the truth."""

Call = Callable[[], Any]
Rate = Literal["bytes", "bf16", "fp8", "int8"]


@dataclass(frozen=True)
class Shape:
    """Latent frames and token rows and columns of 81 video frames."""

    name: str
    frames: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of the whole clip."""
        return self.frames * self.rows * self.columns


SHAPES = (Shape("480p", 21, 30, 52), Shape("720p", 21, 45, 80))


@dataclass(frozen=True)
class Built:
    """A case with its data: our call, its peers, and the fp32 truth for the part of the output that ``sample`` takes.

    Peers compute the same (``alike``), or something that only their speed is compared of.
    """

    ours: Call
    peers: dict[str, Call] = field(default_factory=dict)
    sample: Callable[[Any], Tensor] | None = None
    exact: Call | None = None
    alike: bool = True


@dataclass(frozen=True)
class Bar:
    """What an operation must reach.

    Args:
        share: of the rate that its floor is set by.
        times: groups of peers, and how many times as fast as the fastest of a group it must be.
        cosine, relative_l1: at least, at most, to fp32; None where it claims bf16 and may err twice as much as torch in bf16.
    """

    share: float = 0.0
    times: tuple[tuple[tuple[str, ...], float], ...] = ()
    cosine: float | None = None
    relative_l1: float | None = None


@dataclass(frozen=True)
class Case:
    """An operation: which ceiling its floor is set by, how much of it the work takes, its bar, and how to build it."""

    name: str
    rate: Rate
    work: Callable[[Shape], float]
    build: Callable[[Shape, str], Built]
    bar: Bar = Bar()
    # Architectures that do not have the operation's type; the reason stands in the settings or in dispatch.
    absent: tuple[str, ...] = ()


def noise(*size: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Fresh normal data, or a meta tensor."""
    return torch.randn(*size, device=device, dtype=torch.float32).to(dtype)


def activations(count: int, shape: Shape, device: str) -> list[Tensor]:
    """Tensors [tokens, WIDTH] in bf16."""
    return [noise(shape.tokens, WIDTH, device=device) for _ in range(count)]


def vectors(count: int, device: str) -> list[Tensor]:
    """Tensors [WIDTH] in fp32."""
    return [noise(WIDTH, device=device, dtype=torch.float32) for _ in range(count)]


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of a function, once."""
    return torch.compile(function, dynamic=False)


def first_rows(out: Any) -> Tensor:
    """The sample of an output, or of the first of several."""
    first: Tensor = (out[0] if isinstance(out, tuple) else out)[:SAMPLE]
    return first


def second_first_rows(out: Any) -> Tensor:
    """The sample of the second output."""
    second: Tensor = out[1][:SAMPLE]
    return second


def restored_rows(out: Any) -> Tensor:
    """The sample of values and row scales, the last two of the output, multiplied out."""
    restored: Tensor = out[-2][:SAMPLE].float() * out[-1][:SAMPLE]
    return restored
