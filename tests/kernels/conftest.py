"""The interpreted tests are collected only in the process that ``test_interpreted.py`` starts for them.

Triton decides at import whether kernels are interpreted, and torch-free test runs must not be changed by it.
"""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
