"""What a run says while it runs: JSON lines, TensorBoard, a progress line on the terminal, the loss-curve picture."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from .figures import loss_curves
from .gpus import peak_flops

LOG_FILE = "log.jsonl"

_PLOTTED = ("loss", "contrastive", "captioning", "learning_rate")


class Meter:
    """Rates between two lines of the log: clips, valid tokens, model FLOPs and the share of time spent on data."""

    def __init__(self, device: torch.device, world_size: int) -> None:
        self.peak = peak_flops(device)
        self.world_size = world_size
        self._clear(0.0)

    def _clear(self, loader_wait: float) -> None:
        self.started = time.perf_counter()
        self.wait_before = loader_wait
        self.clips = self.tokens = self.flops = 0

    def add(self, clips: int, valid_tokens: int, model_flops: int) -> None:
        """Count one step of this rank."""
        self.clips += clips
        self.tokens += valid_tokens
        self.flops += model_flops

    def rates(self, loader_wait: float) -> dict[str, float]:
        """Return the rates of all ranks since the last call; ``loader_wait`` is the loader's total wait in seconds."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rates = {
            "clips_per_s": self.clips * self.world_size / seconds,
            "tokens_per_s": self.tokens * self.world_size / seconds,
            "model_tflops_per_s": self.flops * self.world_size / seconds / 1e12,
            "data_wait_share": min((loader_wait - self.wait_before) / seconds, 1.0),
        }
        if self.peak:
            rates["mfu"] = self.flops / seconds / self.peak
        self._clear(loader_wait)
        return rates


class RunLog:
    """Writes a run's log; continuing a run drops what was logged after the checkpoint it continues from."""

    def __init__(self, run: Path, title: str, steps: int, first_step: int) -> None:
        self.path = run / LOG_FILE
        self.picture = run / "loss.png"
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
        self.progress.update(self.task, note=note)
        if not self.console.is_terminal:
            self.say(f"{self.title} step {record['step']}: {note}")

    def draw(self) -> None:
        """Draw the loss curves so far, if there is anything new."""
        if len(self.records) == self.drawn:
            return
        series = {
            name: [math.nan if r[name] is None else r[name] for r in self.records]
            for name in _PLOTTED
            if name in self.records[0]
        }
        loss_curves(self.picture, [r["step"] for r in self.records], series, self.title)
        self.drawn = len(self.records)

    def __enter__(self) -> "RunLog":
        """Show the progress bar."""
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw the curves and close every file; a disk that is full is said, and hides nothing else."""
        self.progress.stop()
        for finish in (self.draw, self.file.close, self.board.close):
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
    if record["skipped_steps"]:
        parts.append(f"{record['skipped_steps']} skipped")
    return ", ".join(parts)
