"""What a run says while it runs: JSON lines, TensorBoard, a progress line on the terminal, pictures of its curves."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ..data.audio import SAMPLE_RATE
from ..data.batch import AudioTextBatch
from .distributed import World
from .figures import loss_curves
from .gpus import peak_flops
from .peak_memory import peak_memory
from .phases import ASCENT, COLLECTIVE, LOADING, STEP
from .stopwatch import Stopwatch
from .throughput_figure import SHARES, throughput_curves
from .update import Outcome
from .weights_and_biases import WandbRun

LOG_FILE = "log.jsonl"

_PLOTTED = ("loss", "contrastive", "captioning", "learning_rate")
_THROUGHPUT = "clips_per_s"


class Meter:
    """Rates between two lines of the log, over all ranks.

    ``clips_per_s``, ``audio_hours_per_s``: of the batches, each once, whatever SAM makes of them. ``tokens_per_s``:
    valid tokens that the networks saw, and ``model_tflops_per_s``: model FLOPs on them, all gradients of a step
    together; ``hardware_tflops_per_s`` adds what was computed again. ``mfu`` and ``hfu`` are these two over the
    device's peak, where that is known. Shares of this rank's time: ``data_wait_share``, the device without work because
    the loader has no batch; ``communication_share``, computation waiting for other ranks. ``sam_share``: of the steps'
    time what SAM adds, its first gradient and the perturbation; only where SAM is on. ``captions_without_target``:
    captions of fewer than two tokens, which predict nothing; only where there is text.
    """

    def __init__(self, world: World) -> None:
        self.peak = peak_flops(world.device)
        self.world = world
        self.stopwatch = Stopwatch(world.device, (STEP, LOADING, ASCENT, COLLECTIVE))
        self._clear()

    def _clear(self) -> None:
        self.started = time.perf_counter()
        self.clips = self.samples = self.tokens = self.flops = self.recomputed = 0
        self.captioned = self.without_target = 0

    def add(self, batch: AudioTextBatch, outcome: Outcome) -> None:
        """Count one step of this rank."""
        self.clips += batch.num_clips
        self.samples += int(batch.wave_offsets[-1])
        self.tokens += outcome.valid_tokens
        self.flops += outcome.model_flops
        self.recomputed += outcome.recomputed_flops
        if int(batch.token_offsets[-1]):
            self.captioned += batch.num_clips
            self.without_target += int((batch.token_lengths < 2).sum())

    def leave_out(self) -> None:
        """Leave all since the last line out of the next one's rates; waits for the device."""
        self.stopwatch.read()
        self._clear()

    def restart(self) -> None:
        """Leave the time since the last line out of the next one's rates: no step was made in it."""
        self.started = time.perf_counter()

    def rates(self) -> dict[str, float]:
        """Return what was measured since the last call, to be called on every rank at the same step; waits for all."""
        here = (self.clips, self.samples, self.tokens, self.flops, self.recomputed, self.captioned, self.without_target)
        everywhere = torch.stack(self.world.total(*here)).tolist()
        clips, samples, tokens, flops, recomputed, captioned, without_target = everywhere
        spans = self.stopwatch.read()
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rates = {
            "clips_per_s": clips / seconds,
            "audio_hours_per_s": samples / SAMPLE_RATE / 3600 / seconds,
            "tokens_per_s": tokens / seconds,
            "model_tflops_per_s": flops / seconds / 1e12,
            "hardware_tflops_per_s": (flops + recomputed) / seconds / 1e12,
            "data_wait_share": min(spans[LOADING] / seconds, 1.0),
            "communication_share": min(spans[COLLECTIVE] / seconds, 1.0),
        }
        if self.peak:
            peak = self.peak * self.world.size
            rates |= {"mfu": flops / seconds / peak, "hfu": (flops + recomputed) / seconds / peak}
        if captioned:
            rates["captions_without_target"] = without_target
        if spans[ASCENT]:
            rates["sam_share"] = spans[ASCENT] / spans[STEP]
        self._clear()
        return rates | peak_memory(self.world.device)


class RunLog:
    """Writes a run's log; continuing a run drops what was logged after the checkpoint it continues from."""

    def __init__(self, run: Path, title: str, steps: int, first_step: int, wandb_run: WandbRun | None = None) -> None:
        self.path = run / LOG_FILE
        self.picture = run / "loss.png"
        self.throughput_picture = run / "throughput.png"
        self.wandb_run = wandb_run
        self.title = title
        self.records = [r for r in read_log(run) if r["step"] <= first_step] if first_step else []
        _replace_lines(self.path, self.records)
        self.file: TextIO = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=steps, completed=first_step, note="")
        self.drawn = 0

    def say(self, message: str) -> None:
        """Print a line beside the progress bar."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        self.progress.update(self.task, completed=step)

    def record(self, record: Mapping[str, float]) -> None:
        """Log one line; ``record["step"]`` counts the steps done. A value that is not finite is logged as null."""
        note = _note(record)
        line = {name: value if math.isfinite(value) else None for name, value in record.items()}
        self.records.append(line)
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for name, value in line.items():
            if name != "step" and value is not None:
                self.board.add_scalar(name, value, record["step"])
        if self.wandb_run is not None:
            self.wandb_run.log({name: line[name] for name in line if name != "step"}, step=int(record["step"]))
        self.progress.update(self.task, note=note)
        if not self.console.is_terminal:
            self.say(f"{self.title} step {record['step']}: {note}")

    def draw(self) -> None:
        """Draw the curves so far, if there is anything new."""
        if len(self.records) == self.drawn:
            return
        steps = [r["step"] for r in self.records]
        loss_curves(self.picture, steps, self._series(_PLOTTED), self.title)
        throughput_curves(self.throughput_picture, steps, self._series((_THROUGHPUT, *SHARES)), self.title)
        self.drawn = len(self.records)

    def _series(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the values of those ``names`` that any line has, NaN where one has none."""
        return {
            name: [math.nan if r.get(name) is None else r[name] for r in self.records]
            for name in names
            if any(name in r for r in self.records)
        }

    def __enter__(self) -> "RunLog":
        """Show the progress bar."""
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw the curves and close every file; a disk that is full is said, and hides nothing else."""
        self.progress.stop()
        finishing = [self.draw, self.file.close, self.board.close]
        if self.wandb_run is not None:
            finishing.append(self.wandb_run.finish)
        for finish in finishing:
            try:
                finish()
            except OSError as error:
                self.say(f"{self.path.parent}: the log is not complete ({error})")


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; a line cut off by a kill is left out."""
    path = run / LOG_FILE
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: dropped a line that was cut off", file=sys.stderr)
    return records


def _replace_lines(path: Path, records: list[dict[str, Any]]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    temporary.rename(path)


def _note(record: Mapping[str, float]) -> str:
    parts = [f"loss {record['loss']:.4g}", f"{record['clips_per_s']:.0f} clips/s"]
    parts.append(f"{record['tokens_per_s']:.0f} tokens/s")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    parts.append(f"data wait {record['data_wait_share']:.0%}")
    for name, share in (("communication", "communication_share"), ("SAM", "sam_share")):
        if record.get(share):
            parts.append(f"{name} {record[share]:.0%}")
    if record["skipped_steps"]:
        parts.append(f"{record['skipped_steps']} skipped")
    return ", ".join(parts)
