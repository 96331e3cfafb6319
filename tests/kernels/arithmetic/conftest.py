"""Where the arithmetic tests run, ``KERNEL_TESTS_ON``: Triton's interpreter on the CPU, or a real device.

Unwritten memory is NaN, so that what a kernel forgets to write is seen; and a kernel that cannot serve a call fails the test
instead of passing it on to the reference it is compared with.
"""

import os

import interpreter
import torch
from closeness import DEVICE, SEED

from kernels._triton import INTERPRETED

os.environ["INFINITETALK_KERNELS"] = "triton"
torch.set_default_device(DEVICE)
if INTERPRETED:
    interpreter.mend()
else:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_report_header() -> str:
    """Random inputs on a device are fresh in every run; this repeats one."""
    return f"kernels on {DEVICE}, KERNEL_TESTS_SEED={SEED}"
