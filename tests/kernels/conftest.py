"""The arithmetic tests are collected only in the processes that ``test_interpreted.py`` and ``tests/gpu`` start for them.

Triton decides at import whether kernels are interpreted, and other test runs must not be changed by it.
"""

import os

collect_ignore = [] if "KERNEL_TESTS_ON" in os.environ else ["arithmetic"]
