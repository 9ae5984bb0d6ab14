"""The command `bench data`."""

import tempfile
from dataclasses import asdict
from pathlib import Path

from ..engine.distributed import choose_device
from ..json_file import check_writable
from .commands import JsonFile, finish
from .data import bench_data
from .data_demand import data_figures
from .data_settings import PROVIDERS, DataProvider, DataSettings
from .data_tables import data_page


def data_command(
    *,
    data: Path | None = None,
    clips: int = 64,
    clip_seconds: float = 10.0,
    crop_seconds: float = 15.0,
    batch_size: int = 16,
    workers: int = 2,
    seconds: float = 3.0,
    provider: tuple[DataProvider, ...] = PROVIDERS,
    device: str = "auto",
    out: Path | None = None,
    json_file: JsonFile = None,
) -> int:
    """Measure how fast clips are loaded, whole and by stage, and how many cores feed a GPU.

    Args:
        data: Packed shards; a synthetic corpus is packed into a temporary directory where none are named.
        clips: Clips of the synthetic corpus; of named shards the first ones, which the stages and the rival are given.
        clip_seconds: Length of a synthetic clip.
        crop_seconds: Longer clips are cropped to this.
        batch_size: Clips of a batch.
        workers: Threads of the loader, or processes of the rival.
        seconds: Time of each loader; a stage has a quarter of it.
        provider: native, the loader's own threads and FLAC decoder; soundfile, these threads with libsndfile; dali,
            DALI decodes for it; torch, a DataLoader with soundfile and padding, the rival; torch + mel, the same with
            log-mel by torch.stft in its workers.
        device: Where batches go: cpu, cuda, ...; auto takes a GPU where there is one.
        out: File to write the tables to, as Markdown.
        json_file: File to write the same figures to as JSON, with device and versions.
    """
    for file in (out, json_file):
        if file is not None:
            check_writable(file)
    chosen = choose_device(device)
    settings = DataSettings(
        data=None if data is None else str(data),
        clips=clips,
        clip_seconds=clip_seconds,
        crop_seconds=crop_seconds,
        batch_size=batch_size,
        workers=workers,
        seconds=seconds,
        providers=provider,
        device=str(chosen),
    )
    settings.check()
    with tempfile.TemporaryDirectory() as folder:
        rows = [asdict(row) for row in bench_data(settings, Path(folder))]
    found = data_figures(rows)
    page = data_page(found)
    print(page)
    if out is not None:
        out.write_text(page + "\n", encoding="utf-8")
    finish(json_file, chosen, {"settings": asdict(settings), "data": found})
    return 0
