"""How an implementation becomes an operator that ``torch.compile`` keeps whole instead of breaking the graph at it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from kernels._triton import launcher_replaced

P = ParamSpec("P")
R = TypeVar("R")


def room(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten contiguous tensor of x's shape and device, in x's dtype unless given."""
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


def operation(name: str, fake: Callable[..., Any], mutates: Sequence[str] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated implementation as ``infinite_talk::name``; ``fake`` makes empty results from the same arguments.

    ``mutates`` names the arguments that it writes to.

    While ``offline`` records launches the implementation is called directly, so that meta tensors reach it and not the fake.
    """

    def register(implementation: Callable[P, R]) -> Callable[P, R]:
        operator = torch.library.custom_op(f"infinite_talk::{name}", implementation, mutates_args=mutates)
        operator.register_fake(fake)

        @functools.wraps(implementation)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if launcher_replaced():
                return implementation(*args, **kwargs)
            result: R = operator(*args, **kwargs)
            return result

        return call

    return register
