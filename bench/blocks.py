"""A transformer block and a whole stack, forward and backward: by hand against what PyTorch makes of them.

Right first, then fast: on the first sequences of a case, outputs and gradients of every way are held against float64;
one that is further off than its budget allows gets a reason instead of a time.
"""

import gc
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ..engine.config import Precision
from ..errors import InputError
from ..kernels.accuracy import deviation
from ..kernels.spec import ErrorBudget
from ..kernels.triton_runtime import INTERPRETING
from ..models.config import AUDIO_TEXT_SIZES
from .block_stack import DTYPES, SEQUENCES, TIMED, WAYS, BlockProvider, Ready, Stack
from .harness import Pass, Stopwatch, Task, Timing, measure
from .providers import check_names, specialising, why
from .roofline import Roofs

CUT = "cut: the time for the blocks was over"
_CHECKED_TOKENS = 1024
_BUDGET = ErrorBudget(factor=3.0, floor_ulps=16.0)  # many roundings in a row, in an order of each way's own


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """What is timed and for how long."""

    size: str = "paper"
    """Networks, see :mod:`cacophony.models.config`: whose blocks."""
    tokens: int = 65536
    """Valid tokens of a call, about."""
    layers: Sequence[int] = (1, 12)
    sequences: Sequence[str] = SEQUENCES
    providers: Sequence[BlockProvider] = TIMED
    precision: Precision = "bf16"
    device: str = "cpu"
    rounds: int = 2
    """Turns of every provider."""
    seconds: float = 0.2
    """Time of a provider's turn at one pass."""
    part_seconds: float | None = None
    """Cases that would start later are cut."""

    def check(self) -> None:
        """Raise InputError where a number is too small or a name unknown."""
        smallest = {"tokens": self.tokens, "rounds": self.rounds, "layers": min(self.layers, default=0)}
        for name, value in smallest.items():
            if value < 1:
                raise InputError(f"--{name} is {value}; expected at least 1")
        if not self.seconds > 0:
            raise InputError(f"--seconds is {self.seconds}; expected more than 0")
        check_names("size", [self.size], list(AUDIO_TEXT_SIZES))
        check_names("sequences", self.sequences, SEQUENCES)
        check_names("provider", self.providers, list(WAYS))
        if INTERPRETING and torch.device(self.device).type == "cuda":
            raise InputError("TRITON_INTERPRET=1 is set, and the interpreter's times mean nothing; unset it")


@dataclass(frozen=True)
class BlockPass:
    """A pass's time, its model FLOPs on valid tokens a second, and what that is of the measured GEMM roof."""

    timing: Timing
    tflop_per_s: float
    roof_share: float | None


@dataclass(frozen=True)
class BlockRow:
    """One provider on one case; either ``passes`` or the ``reason`` why there is no time."""

    sequences: str
    layers: int
    provider: str
    reason: str | None = None
    valid_tokens: int | None = None
    peak_bytes: int | None = None
    """Most memory that forward and backward allocate on top of what was there: weights, inputs and, by hand, gradients.
    None on a CPU."""
    passes: dict[Pass, BlockPass] = field(default_factory=dict)


def bench_blocks(settings: BlockSettings, roofs: Roofs | None = None) -> Iterator[BlockRow]:
    """Yield the rows of every case, single blocks first; the compiled way of all cases comes after the others."""
    settings.check()
    started = time.perf_counter()
    device = torch.device(settings.device)
    stopwatch = Stopwatch(device)
    for compiled in (False, True):
        names: list[BlockProvider] = [name for name in settings.providers if WAYS[name].compiled == compiled]
        for layers, sequences in itertools.product(settings.layers, settings.sequences) if names else ():
            if settings.part_seconds is not None and time.perf_counter() - started > settings.part_seconds:
                yield from (BlockRow(sequences, layers, name, reason=CUT) for name in names)
                continue
            try:
                config = AUDIO_TEXT_SIZES[settings.size]
                case = _Case(Stack.of(sequences, layers, settings.tokens, config, device), settings, device)
            except Exception as error:
                yield from (BlockRow(sequences, layers, name, reason=why(error)) for name in names)
                continue
            with specialising():
                timed = _measure(case, names, stopwatch, settings)
            for name, found in timed.items():
                yield _row((sequences, layers, name), case, found, settings, roofs)
            _free(device)


class _Case:
    """A stack, and what it returns on a few of its sequences: in float64, and by plain PyTorch in the precision."""

    def __init__(self, stack: Stack, settings: BlockSettings, device: torch.device) -> None:
        self.stack = stack
        self._few = stack.few(_CHECKED_TOKENS)
        self._where = settings.precision, device
        self._truth = Ready(self._few, WAYS["reference"], *self._where, exact=True).results()
        self._plain = Ready(self._few, WAYS["reference"], *self._where).results()

    def ready(self, name: BlockProvider) -> Ready:
        """Return the whole stack in the way ``name``; raises ArithmeticError where that way is wrong on a few."""
        torch._dynamo.reset()  # what was compiled for another case must not count against the limit of recompilations
        found = Ready(self._few, WAYS[name], *self._where).results()
        for tensor, exact in self._truth.items():
            off = deviation(tensor, found.get(tensor), self._plain[tensor], exact, _BUDGET, DTYPES[self._where[0]])
            if not off.ok:
                raise ArithmeticError(f"wrong: error of {tensor} is {off.error:.3g}, allowed {off.limit:.3g}")
        return Ready(self.stack, WAYS[name], *self._where)


def _measure(
    case: _Case, names: Sequence[BlockProvider], stopwatch: Stopwatch, settings: BlockSettings
) -> dict[str, dict[Pass, Timing] | Exception]:
    """Time every pass of every way that is right, in turns."""
    found: dict[str, dict[Pass, Timing] | Exception] = {}
    tasks: dict[str, Mapping[Pass, Task]] = {}
    for name in names:
        try:
            tasks[name], found[name] = _tasks(case.ready(name)), {}
        except Exception as error:
            found[name] = error
    passes: tuple[Pass, ...] = ("both", "forward", "backward")  # where there is not enough memory, the first shows it
    for pass_ in passes:
        running = {name: of_one[pass_] for name, of_one in tasks.items() if isinstance(found[name], dict)}
        seconds, rounds = settings.seconds, settings.rounds
        times = measure(running, stopwatch, seconds=seconds, warm_up_seconds=seconds / 3, rounds=rounds)
        for name, timing in times.items():
            so_far = found[name]
            if isinstance(timing, Exception):
                found[name] = timing
                _free(stopwatch.device)
            elif isinstance(so_far, dict):
                so_far[pass_] = timing
    return found


def _tasks(ready: Ready) -> dict[Pass, Task]:
    def prepared() -> Tensor:
        ready.prepare()
        return ready.forward()

    return {
        "forward": Task(lambda _: ready.forward(), ready.prepare),
        "backward": Task(ready.backward, prepared),
        "both": Task(lambda _: ready.backward(ready.forward()), ready.prepare),
    }


def _row(
    name: tuple[str, int, str],
    case: _Case,
    found: dict[Pass, Timing] | Exception,
    settings: BlockSettings,
    roofs: Roofs | None,
) -> BlockRow:
    if isinstance(found, Exception):
        reason = str(found) if isinstance(found, ArithmeticError) else why(found)
        return BlockRow(*name, reason=reason)
    roof = roofs.matmul_tflop_per_s["bfloat16" if settings.precision == "bf16" else "float32"] if roofs else None
    products: dict[Pass, int] = {"forward": 1, "backward": 2, "both": 3}
    passes: dict[Pass, BlockPass] = {}
    for pass_, timing in found.items():
        rate = products[pass_] * case.stack.flops() / timing.ms_p50 / 1e9
        passes[pass_] = BlockPass(timing, rate, rate / roof if roof else None)
    return BlockRow(*name, valid_tokens=sum(case.stack.lengths), peak_bytes=found["both"].extra_bytes, passes=passes)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> int:
    """Bench the settings read from stdin as JSON and write one row a line, as it is known: for other processes."""
    asked = json.load(sys.stdin)
    roofs = Roofs(**asked["roofs"]) if asked["roofs"] else None
    for row in bench_blocks(BlockSettings(**asked["settings"]), roofs):
        print(json.dumps(asdict(row)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
