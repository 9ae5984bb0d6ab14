"""Settings of every test: seeded torch, no backend asked for by the environment, hypothesis without clocks or luck.

Without a GPU Triton's kernels run in its interpreter, which has to be chosen before the package is imported.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The shapes are small: threads that wait for each other take longer than one that works, here and in child processes.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

MOST_WORKERS = 4
"""Processes the suite is spread over at most; each holds up to 2 GiB."""

HAS_HYPOTHESIS = importlib.util.find_spec("hypothesis") is not None

if HAS_HYPOTHESIS:
    from hypothesis import settings

    settings.register_profile("cacophony", deadline=None, derandomize=True, database=None)
    settings.load_profile("cacophony")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what needs hypothesis where it is not: `cacophony bench all` runs the ops' tests with pytest alone."""
    if HAS_HYPOTHESIS or collection_path.suffix != ".py":
        return None
    return "from hypothesis import" in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Spread the whole suite over the cores, file by file; tests that are named run in this process, as with -n 0."""
    if not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ:
        return
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and config.option.numprocesses is None and not torch.cuda.is_available():
        config.option.numprocesses = min(os.cpu_count() or 1, MOST_WORKERS)
        config.option.dist = "loadfile"  # what a module's fixtures made is made once


@pytest.fixture(autouse=True)
def known_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a test from torch's seed 0 and one thread, whatever ran before it, and from the default backend."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # UMAP leaves PyTorch with another number
    monkeypatch.delenv("CACOPHONY_BACKEND", raising=False)
