"""Every kernel's arithmetic, run by Triton's interpreter on the CPU in a process of its own."""

from pathlib import Path

import interpreter
import pytest


@pytest.mark.skipif(interpreter.obstacle() is not None, reason=str(interpreter.obstacle()))
def test_kernels_agree_with_the_reference_under_the_interpreter() -> None:
    interpreter.assert_passes(Path(__file__).parent / "arithmetic")
