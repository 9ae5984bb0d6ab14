"""A plain trainer's loader, as a rival: a DataLoader over FLAC files, soundfile, padding, log-mel by torch.stft."""

import io
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..kernels.log_mel import FFT_SIZE, HOP, SAMPLE_RATE, WINDOW, mel_matrix


def read_wave(file: Path | bytes, start: int, frames: int) -> Tensor:
    """Decode samples ``start`` to ``start + frames`` (-1: to the end) to float32 ``[n]``."""
    source: Any = io.BytesIO(file) if isinstance(file, bytes) else file
    wave, _ = soundfile.read(source, start=start, frames=frames, dtype="float32")
    return torch.from_numpy(wave)


def pad_waves(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad waves ``[n]`` with zeros to the longest: ``[B, longest]`` and int64 lengths ``[B]``."""
    padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    return padded, torch.tensor([len(wave) for wave in waves])


def padded_log_mel(waves: Tensor) -> Tensor:
    """Log-mel frames ``[..., frames, 128]`` of float32 waves ``[..., n]``, by the ops of torchaudio's MelSpectrogram.

    The frames are ours, but for those that reach past the end.
    """
    window = torch.nn.functional.pad(torch.hann_window(WINDOW, device=waves.device), (0, FFT_SIZE - WINDOW))
    spectrum = torch.stft(
        waves, FFT_SIZE, hop_length=HOP, win_length=FFT_SIZE, window=window, center=False, return_complex=True
    )
    mel = spectrum.abs().transpose(-1, -2) @ mel_matrix(torch.float32, waves.device)
    return 0.2 * torch.log(mel + 1e-5) + 0.9


@dataclass(frozen=True)
class Clips(Dataset[Tensor]):
    """Random crops of audio files, or their log-mel."""

    files: Sequence[str]
    crop_seconds: float
    mel: bool

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file, longest = Path(self.files[index]), round(self.crop_seconds * SAMPLE_RATE)
        samples = soundfile.info(file).frames
        wave = read_wave(file, random.randrange(max(samples - longest, 0) + 1), min(samples, longest))
        return padded_log_mel(wave) if self.mel else wave


@dataclass(frozen=True)
class Fetched:
    """A padded batch, and the CPU time that the worker ``pid`` has taken until then."""

    batch: Tensor
    lengths: Tensor
    pid: int
    cpu_seconds: float


def collate(rows: Sequence[Tensor]) -> Fetched:
    """Pad rows and note the worker's time."""
    return Fetched(*pad_waves(rows), os.getpid(), time.process_time())


def measure(
    files: Sequence[str], *, mel: bool, batch_size: int, workers: int, crop_seconds: float, seconds: float
) -> dict[str, Any]:
    """Take batches for so many ``seconds``, after two of every worker; returns what DataRates are made of."""
    # Passes over the files, one after another: a DataLoader starts its workers anew for each.
    loader = DataLoader(
        Clips(list(files) * 1_000, crop_seconds, mel),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
    )
    batches = iter(loader)
    before: dict[int, float] = {}
    for _ in range(2 * workers):
        fetched = next(batches)
        before[fetched.pid] = fetched.cpu_seconds
    after, clips, length = dict(before), 0, 0
    begun, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds or clips < 2 * batch_size:
        fetched = next(batches)
        after[fetched.pid] = fetched.cpu_seconds
        clips += len(fetched.batch)
        length += int(fetched.lengths.sum())
    taken, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    cpu_seconds += sum(after[pid] - before.get(pid, 0.0) for pid in after)
    audio_seconds = length * (HOP if mel else 1) / SAMPLE_RATE
    moved = clips * sum(Path(file).stat().st_size for file in files) // len(files)
    return {
        "clips": clips,
        "seconds": taken,
        "cpu_seconds": cpu_seconds,
        "audio_seconds": audio_seconds,
        "bytes": moved,
    }


def main() -> int:
    """Measure what stdin asks for as JSON and write one line: for a process of its own, which forks its workers."""
    print(json.dumps(measure(**json.load(sys.stdin))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
