"""Compile the kernels for a GPU that is not there, exactly as a call would, and read what the assembler made of them.

Inside ``recording(architecture)`` operations choose and launch as on that architecture, but each launch is compiled (Triton's
own path, with the specialisation that the call's arguments give) and reported instead of run. Meta tensors of production
shape serve as arguments, so nothing is allocated. Needs Triton and the assemblers in its package, no GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from kernels._triton import replace_launcher, triton
from kernels.dispatch import pretend
from kernels.settings import SHARED_MEMORY, Architecture

# What in the machine code tells which unit does the work: SASS mnemonics by kind.
_INSTRUCTION_KINDS = {
    "wgmma_16bit": ("HGMMA",),
    "wgmma_int8": ("IGMMA",),
    "wgmma_fp8": ("QGMMA",),
    "mma_16bit": ("HMMA",),
    "mma_int8": ("IMMA",),
    "mma_fp8": ("QMMA",),
    "tma_load": ("UTMALDG",),
    "async_copy": ("LDGSTS",),
    "wide_load": ("LDG.E.128", "LDG.E.EF.128", "LDG.E.EL.128", "LDGSTS.E.BYPASS"),  # only copies of 16 bytes bypass L1
    "wide_store": ("STG.E.128", "STG.E.EF.128"),
    "wgmma_wait": ("WARPGROUP.DEPBAR",),
    "spill": ("LDL", "STL"),
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers a thread, stack bytes, shared bytes a program, and instructions by kind."""

    kernel: str
    architecture: Architecture
    num_warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    kinds: dict[str, int]

    @property
    def faults(self) -> list[str]:
        """What must not ship: spilled registers, too much shared memory, matrix instructions that wait for one another."""
        found = []
        if self.stack_bytes or "spill" in self.kinds:
            found.append(f"spills registers ({self.stack_bytes} bytes of stack)")
        if self.shared_bytes > SHARED_MEMORY[self.architecture]:
            found.append(f"takes {self.shared_bytes} bytes of shared memory of {SHARED_MEMORY[self.architecture]}")
        # A product is a run of instructions with one wait behind it. Where ptxas cannot tell that nothing else touches the sums
        # meanwhile (its notes C7510 to C7515), it puts a wait behind each, in the whole kernel.
        products = sum(self.kinds.get(kind, 0) for kind in ("wgmma_16bit", "wgmma_int8", "wgmma_fp8"))
        if products and self.kinds["wgmma_wait"] * 2 > products:
            found.append(f"has {self.kinds['wgmma_wait']} waits for {products} matrix instructions")
        return found


@contextmanager
def recording(architecture: Architecture) -> Iterator[list[Resources]]:
    """Compile instead of launching; the list fills with one entry for each launch."""
    compiled: list[Resources] = []

    def compile_only(kernel: Any, grid: tuple[int, ...], *args: object, **options: object) -> None:
        binary = kernel.warmup(*args, grid=grid, **options)
        compiled.append(_inspect(binary, architecture))

    driver = triton.runtime.driver
    previous_driver = driver._active
    previous_launcher = replace_launcher(compile_only)
    driver.set_active(_AbsentDevice(architecture))
    try:
        with pretend(architecture):
            yield compiled
    finally:
        replace_launcher(previous_launcher)
        driver._active = previous_driver


class _AbsentDevice:
    """Stands where Triton's driver stands, answering only what compilation asks: the target, and a key for its caches."""

    def __init__(self, architecture: Architecture) -> None:
        self._capability = int(architecture.removeprefix("sm_"))

    def get_current_target(self) -> Any:
        return import_module("triton.backends.compiler").GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0


@cache
def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _inspect(binary: Any, architecture: Architecture) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _dump("--dump-resource-usage", file.name)
        code = _dump("--dump-sass", file.name)
    mnemonics = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9_.]*)", code, re.MULTILINE)
    return Resources(
        kernel=binary.metadata.name,
        architecture=architecture,
        num_warps=binary.metadata.num_warps,
        registers=_field(usage, "REG"),
        stack_bytes=_field(usage, "STACK"),
        shared_bytes=binary.metadata.shared,
        instructions=len(mnemonics),
        kinds={kind: n for kind, starts in _INSTRUCTION_KINDS.items() if (n := sum(m.startswith(starts) for m in mnemonics))},
    )


def _field(usage: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no {name}: {usage[:200]}")
    return int(found.group(1))


def _dump(what: str, path: str) -> str:
    return subprocess.run([_tool("cuobjdump"), what, path], check=True, capture_output=True, text=True, timeout=60).stdout
