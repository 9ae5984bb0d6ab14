"""Settings of every test: seeded torch, no backend asked for by the environment, hypothesis without clocks or luck.

Without a GPU Triton's kernels run in its interpreter, which has to be chosen before the package is imported.
"""

import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("cacophony", deadline=None, derandomize=True, database=None)
settings.load_profile("cacophony")


@pytest.fixture(autouse=True)
def known_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a test from torch's seed 0, whatever ran before it, and from the default backend."""
    torch.manual_seed(0)
    monkeypatch.delenv("CACOPHONY_BACKEND", raising=False)
