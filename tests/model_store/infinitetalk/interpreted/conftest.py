"""These tests run where kernels are interpreted, see ``tests/kernels/interpreter.py``."""

import interpreter

interpreter.mend()
