"""The gradient of a batch is the same on 1, 2 and 4 ranks, for every micro-batch size and stash."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.models.weights import load_tensors, save_tensors
from torch import Tensor

CLIPS = 8
CASES = [(size, stash) for size in (1, 2, 3, 8) for stash in (0, 1, 3, 10)]

# Computes every case on one rank of {size}; the arenas sum and perturb, each rank saves its share.
RANK = """
import os
os.environ.update(RANK="{rank}", WORLD_SIZE="{size}", MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
import sys
sys.path.insert(0, {folder!r})
import gradient_on_ranks
gradient_on_ranks.main({toml!r}, {out!r})
"""
