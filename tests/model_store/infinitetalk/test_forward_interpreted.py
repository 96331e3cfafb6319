"""The model's way through the kernels, run by Triton's interpreter on the CPU in a process of its own."""

from pathlib import Path

import interpreter
import pytest


@pytest.mark.skipif(interpreter.obstacle() is not None, reason=str(interpreter.obstacle()))
def test_a_forward_goes_through_the_kernels() -> None:
    interpreter.assert_passes(Path(__file__).parent / "interpreted")
