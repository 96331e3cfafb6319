"""The model's way through the kernels, run by Triton's interpreter on the CPU in a process of its own."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "kernels"))

import interpreter


@pytest.mark.skipif(interpreter.obstacle() is not None, reason=str(interpreter.obstacle()))
def test_a_forward_goes_through_the_kernels() -> None:
    interpreter.assert_passes(Path(__file__).parent / "interpreted")
