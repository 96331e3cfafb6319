"""Every kernel's arithmetic, run by Triton's interpreter on the CPU in a process of its own."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def interpreter_and_numpy_get_on() -> bool:
    """Triton's interpreter before 3.7 relies on a conversion that NumPy 2.4 took away."""
    if importlib.util.find_spec("triton") is None:
        return True
    triton, numpy = (tuple(map(int, importlib.metadata.version(name).split(".")[:2])) for name in ("triton", "numpy"))
    return triton >= (3, 7) or numpy < (2, 4)


@pytest.mark.skipif(not interpreter_and_numpy_get_on(), reason="Triton's interpreter before 3.7 needs numpy<2.4")
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed (extra: gpu)")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (extra: gpu)")
def test_kernels_agree_with_the_reference_under_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "KERNEL_TESTS_ON": "interpreter", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "arithmetic")]
    run = subprocess.run(
        command, cwd=HERE.parent.parent, env=environment, check=False, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-2000:]}"
