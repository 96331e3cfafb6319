"""The arithmetic tests are collected only in the processes that ``test_interpreted.py`` and ``tests/gpu`` start for them."""

import os

collect_ignore = [] if "KERNEL_TESTS_ON" in os.environ else ["arithmetic"]
