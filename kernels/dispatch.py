"""Which implementation serves a call: decided by device, architecture, dtype and an override, with the reason logged once.

``INFINITETALK_KERNELS`` overrides the choice: one word for every operation (``reference``), or pairs for some
(``attention=fa2,gelu_tanh=reference``). A choice that cannot serve the call is an error, not a silent change.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels._triton import HAVE_TRITON, INTERPRETED
from kernels.settings import ARCHITECTURES, Architecture, Unavailable, launch_entry

OVERRIDE = "INFINITETALK_KERNELS"

_log = logging.getLogger(__name__)
_pretended: Architecture | None = None


@dataclass(frozen=True)
class Option:
    """One way to serve an operation; ``obstacle`` says why it cannot serve this call, or is None."""

    name: str
    reason: str
    obstacle: str | None = None


@contextmanager
def pretend(architecture: Architecture) -> Iterator[None]:
    """Choose as if every tensor lived on a GPU of this architecture; offline compilation and the interpreter use it."""
    global _pretended  # noqa: PLW0603 - the offline tools are single-threaded
    before, _pretended = _pretended, architecture
    try:
        yield
    finally:
        _pretended = before


def runs_plain(x: Tensor) -> bool:
    """True where only plain torch can serve: CPU tensors outside the interpreter."""
    return x.device.type == "cpu" and not INTERPRETED


@functools.cache
def _device_architecture(index: int) -> Architecture | None:
    return architecture_of(torch.cuda.get_device_capability(index))


def architecture_of(capability: tuple[int, int]) -> Architecture | None:
    """The architecture whose settings a compute capability uses: the newest table entry that is not newer than it.

    Blackwell (10.x, 12.x) takes sm_89's settings: they need the least shared memory and no Hopper instructions, which its
    compilers do not offer.
    """
    if capability >= (10, 0):
        return "sm_89"
    fitting = [name for name in ARCHITECTURES if name <= f"sm_{capability[0]}{capability[1]}"]
    return fitting[-1] if fitting else None


def architecture(x: Tensor) -> Architecture | None:
    """The architecture x's device counts as, or None when it is no NVIDIA GPU of 8.0 or newer."""
    if _pretended is not None:
        return _pretended
    if INTERPRETED and x.device.type == "cpu":
        return "sm_90"
    if x.device.type != "cuda" or torch.version.cuda is None:
        return None
    return _device_architecture(x.device.index if x.device.index is not None else torch.cuda.current_device())


def triton_obstacle(setting: str, x: Tensor, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why Triton cannot serve x with this entry of the settings, or None."""
    if not HAVE_TRITON:
        return "Triton is not installed"
    arch = architecture(x)
    if arch is None:
        return f"{x.device} is no NVIDIA GPU of compute capability 8.0 or newer"
    if x.dtype not in dtypes:
        return f"the kernel takes {', '.join(str(d) for d in dtypes)}, not {x.dtype}"
    entry = launch_entry(setting, arch)
    return entry.reason if isinstance(entry, Unavailable) else None


def choose(operation: str, options: Sequence[Option]) -> str:
    """The first option without an obstacle, or the one that the override names."""
    wanted = _override().get(operation) or _override().get("*")
    if wanted is not None:
        named = next((o for o in options if o.name == wanted), None)
        if named is None and _override().get(operation):
            known = ", ".join(o.name for o in options)
            raise ValueError(f"{OVERRIDE}: {operation} has no implementation {wanted!r}; it has {known}")
        if named is not None:
            if named.obstacle is not None:
                raise ValueError(f"{OVERRIDE}: {operation}={wanted} cannot serve this call: {named.obstacle}")
            _say_once(operation, named.name, f"{OVERRIDE} asks for it")
            return named.name
    chosen = next(o for o in options if o.obstacle is None)
    passed = "; ".join(f"not {o.name}: {o.obstacle}" for o in options[: options.index(chosen)])
    _say_once(operation, chosen.name, passed or chosen.reason)
    return chosen.name


_FUSED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def use_triton(operation: str, x: Tensor, *, setting: str | None = None, obstacle: str | None = None) -> bool:
    """For operations with two implementations, ``triton`` and ``reference``: whether the kernel serves x."""
    found = obstacle or triton_obstacle(setting or operation, x, _FUSED_DTYPES)
    options = (
        Option("triton", "one pass over memory instead of several", found),
        Option("reference", "plain torch serves everything"),
    )
    return choose(operation, options) == "triton"


def _override() -> dict[str, str]:
    return _parse_override(os.environ.get(OVERRIDE, ""))


@functools.cache
def _parse_override(text: str) -> dict[str, str]:
    pairs = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        operation, equals, name = word.partition("=")
        pairs[operation if equals else "*"] = name if equals else operation
    return pairs


@functools.cache
def _say_once(operation: str, choice: str, reason: str) -> None:
    _log.info("%s runs on %s: %s", operation, choice, reason)
