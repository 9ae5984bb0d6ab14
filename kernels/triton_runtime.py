"""Triton where it is installed, and whether its kernels run in the interpreter.

Triton reads ``TRITON_INTERPRET`` when a kernel is defined: it has to be set before this package is imported.
"""

import importlib.util
import os

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETING = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
