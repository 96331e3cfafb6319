"""Triton's interpreter for tests: kernels run on the CPU, in a process of its own.

Triton decides at import whether kernels are interpreted, and other test runs must not be changed by it. Folders of tests for such
a process are not collected in others, see ``conftest.py`` beside this file; ``KERNEL_TESTS_ON`` says where they run: in the
interpreter, or on a real device.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def obstacle() -> str | None:
    """Why kernels cannot be interpreted here, or None."""
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (extra: gpu)"
    triton, numpy = (tuple(map(int, importlib.metadata.version(name).split(".")[:2])) for name in ("triton", "numpy"))
    # An older one relies on a conversion that NumPy 2.4 took away.
    return None if triton >= (3, 7) or numpy < (2, 4) else "Triton's interpreter before 3.7 needs numpy<2.4"


def assert_passes(folder: Path) -> None:
    """Run the tests of a folder in the interpreter, and fail with what they say."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "KERNEL_TESTS_ON": "interpreter", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-2000:]}"


def mend() -> None:
    """Have unwritten memory show as NaN, and casts round as the hardware's do.

    The interpreter truncates to bf16 and loses the carry when fp8 rounds up to a power of two. Torch's casts, which round as
    the hardware does, take the place of both, so that tests judge the kernels.
    """
    import numpy as np  # noqa: PLC0415 - not every process that imports this has it
    import torch  # noqa: PLC0415
    from triton.runtime import interpreter  # noqa: PLC0415

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    convert = interpreter._convert_float

    def rounding_as_the_hardware(values: Any, from_type: Any, to_type: Any, rounding_mode: Any) -> Any:
        narrow = {"fp8e4nv": torch.float8_e4m3fn, "bf16": torch.bfloat16}.get(str(to_type))
        wide = {"fp32": np.float32, "fp16": np.float16}.get(str(from_type))
        if narrow is None or wide is None:
            return convert(values, from_type, to_type, rounding_mode)
        rounded = torch.from_numpy(np.ascontiguousarray(values).view(wide).copy()).to(narrow)
        bits = torch.uint8 if narrow == torch.float8_e4m3fn else torch.uint16
        return rounded.view(bits).numpy().reshape(values.shape)

    interpreter._convert_float = rounding_as_the_hardware
