"""Where the arithmetic tests run, ``KERNEL_TESTS_ON``: Triton's interpreter on the CPU, or a real device.

Unwritten memory is NaN, so that what a kernel forgets to write is seen; and a kernel that cannot serve a call fails the test
instead of passing it on to the reference it is compared with.
"""

import os
from typing import Any

import numpy as np
import torch
from closeness import DEVICE, SEED

from kernels._triton import INTERPRETED

os.environ["INFINITETALK_KERNELS"] = "triton"
torch.set_default_device(DEVICE)
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_report_header() -> str:
    """Random inputs on a device are fresh in every run; this repeats one."""
    return f"kernels on {DEVICE}, KERNEL_TESTS_SEED={SEED}"


def _mend_casts() -> None:
    """The interpreter truncates to bf16 and loses the carry when fp8 rounds up to a power of two.

    Torch's casts, which round as the hardware does, take the place of both, so that tests judge the kernels.
    """
    from triton.runtime import interpreter  # noqa: PLC0415 - only where it is used is it sure to be there

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


if INTERPRETED:
    _mend_casts()
