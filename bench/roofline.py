"""The roofs of a device as measured on it: how fast it copies, how fast it multiplies matrices of random numbers."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..kernels.spec import Work
from .harness import Stopwatch, Task, Timing, measure


@dataclass(frozen=True)
class Roofs:
    """Measured rates: copying (GB/s, bytes read and written) and multiplying matrices (TFLOP/s by dtype)."""

    copy_gb_per_s: float
    matmul_tflop_per_s: dict[str, float]
    """By dtype: ``bfloat16``, ``float32``, and ``tf32`` where the device has it."""

    def floor_ms(self, work: Work, dtype: str) -> float:
        """Return the least time ``work`` can take: that of its bytes or that of its operations in ``dtype``."""
        copying = work.bytes / self.copy_gb_per_s / 1e6
        multiplying = work.flops / self.matmul_tflop_per_s[dtype] / 1e9 if work.flops else 0.0
        return max(copying, multiplying)


def measure_roofs(device: torch.device, *, seconds: float = 0.3) -> Roofs:
    """Measure the roofs, each for about ``seconds``: large operands on a GPU, small ones on a CPU."""
    on_gpu = device.type == "cuda"
    stopwatch = Stopwatch(device)
    copied = torch.randn(2**29 if on_gpu else 2**24, device=device).bfloat16()
    copy_s = _median_seconds(stopwatch, Task(lambda _: copied.clone()), seconds)
    rates = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("tf32", torch.float32)):
        if name == "tf32" and not on_gpu:
            continue
        size = (8192 if name != "float32" else 4096) if on_gpu else 512
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        with _float32_precision("high" if name == "tf32" else "highest"):
            rates[name] = 2 * size**3 / _median_seconds(stopwatch, _product(left, right), seconds) / 1e12
    return Roofs(2 * copied.nbytes / copy_s / 1e9, rates)


def _product(left: Tensor, right: Tensor) -> Task:
    return Task(lambda _: left @ right)


def _median_seconds(stopwatch: Stopwatch, task: Task, seconds: float) -> float:
    timing = measure({"": task}, stopwatch, seconds=seconds, warm_up_seconds=seconds / 3, rounds=1)[""]
    if not isinstance(timing, Timing):
        raise timing
    return timing.ms_p50 / 1e3


@contextmanager
def _float32_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def main() -> int:
    """Measure the roofs of the device read from stdin as JSON and write them as one line: for other processes."""
    asked = json.load(sys.stdin)
    print(json.dumps(asdict(measure_roofs(torch.device(asked["device"]), seconds=asked["seconds"]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
