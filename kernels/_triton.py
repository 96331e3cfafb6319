"""The one door to Triton, so that every kernel file also imports on machines without it.

A kernel is declared with ``@jit`` above ``@no_type_check`` (its body is Triton's language, not Python's) and started with
``launch``. ``offline`` puts its own launcher in place to compile for a GPU that is not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

HAVE_TRITON = find_spec("triton") is not None
# Triton reads the variable when a kernel is declared, so it is read once, here, just before that.
INTERPRETED = HAVE_TRITON and os.environ.get("TRITON_INTERPRET", "0") == "1"

triton: Any = import_module("triton") if HAVE_TRITON else None
tl: Any = import_module("triton.language") if HAVE_TRITON else None

Launcher = Callable[..., None]


def jit(kernel: Callable[..., Any]) -> Any:
    """``triton.jit``, or the undecorated function where Triton is missing (dispatch never starts it there)."""
    return triton.jit(kernel) if HAVE_TRITON else kernel


def _launch_on_device(kernel: Any, grid: tuple[int, ...], *args: object, **options: object) -> None:
    # Triton launches on the current device, which with several GPUs need not be the tensors'.
    device = next((x.device for x in args if isinstance(x, torch.Tensor) and x.is_cuda), None)
    with nullcontext() if device is None else torch.cuda.device(device):
        kernel[grid](*args, **options)


_launcher: Launcher = _launch_on_device


def launch(kernel: Any, grid: tuple[int, ...], *args: object, **options: object) -> None:
    """Start ``kernel`` on ``grid``; options are its constexprs and num_warps, num_stages. An empty grid starts nothing."""
    if 0 not in grid:
        _launcher(kernel, grid, *args, **options)


def replace_launcher(launcher: Launcher) -> Launcher:
    """Put another launcher in place and return the one before."""
    global _launcher
    previous, _launcher = _launcher, launcher
    return previous


def launcher_replaced() -> bool:
    """True while launches go elsewhere than to a device."""
    return _launcher is not _launch_on_device
