"""Both loaders keep one contract: the same bytes in the same order, exact resume, ranks in step, bounded memory."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from cacophony.data import dali_decoder as dali_module
from cacophony.data import flac as flac_module
from cacophony.data.audio import encode_flac_int16
from cacophony.data.batch import AudioTextBatch
from cacophony.data.dali import dali_problem
from cacophony.data.dali_decoder import DaliDecoder, choose_decoder
from cacophony.data.flac import Stretch, flac_library
from cacophony.data.loader import Loader
from cacophony.data.packing import allocate
from cacophony.errors import InputError
from cacophony.native_library import NativeLibrary

needs_dali = pytest.mark.skipif(bool(dali_problem()), reason=dali_problem() or "DALI is here")

MakeLoader = Callable[..., Loader]


def same(a: AudioTextBatch, b: AudioTextBatch) -> bool:
    pairs = ((getattr(a, name), getattr(b, name)) for name in vars(a))
    return all(torch.equal(x, y) for x, y in pairs)


def take(loader: Loader, count: int) -> list[AudioTextBatch]:
    return [next(loader) for _ in range(count)]


@needs_dali
@pytest.mark.parametrize(
    "length", [{"crop_seconds": None}, {"crop_seconds": 0.02}, {"crop_seconds": 0.3}, {"fixed_seconds": 0.3}]
)
def test_both_give_the_same_bytes(many: Path, make_loader: MakeLoader, length: dict[str, float | None]) -> None:
    """Clips that are much longer than the crop are left to libsndfile by either: of 0.3 s crops DALI decodes most."""
    native = make_loader(many, "native", batch_size=150, **length)
    dali = make_loader(many, "dali", batch_size=150, **length)
    assert all(same(*batches) for batches in zip(take(native, 5), take(dali, 5), strict=True))


def test_twenty_interruptions_change_no_sample(many: Path, make_loader: MakeLoader, path: str) -> None:
    """Each part runs with other threads, other read-ahead and, in turns, the other path: the state fits all."""
    whole_loader = make_loader(many, "native")
    steps = whole_loader.steps_per_epoch
    whole = take(whole_loader, steps)
    rng = random.Random(path)
    stops = sorted(rng.sample(range(1, steps), 20))
    other = "native" if dali_problem() else "dali"
    state, parts = make_loader(many, path).state_dict(), []
    for n, (start, stop) in enumerate(zip([0, *stops], [*stops, steps], strict=True)):
        who = path if n % 2 == 0 else other
        loader = make_loader(many, who, workers=rng.randint(1, 3), prefetch_batches=rng.randint(1, 3))
        loader.load_state_dict(state)
        parts += take(loader, stop - start)
        state = loader.state_dict()
        loader.close()
    assert all(same(a, b) for a, b in zip(whole, parts, strict=True))


def test_two_ranks_become_four_at_an_epoch(many: Path, make_loader: MakeLoader, path: str) -> None:
    """All ranks do as many steps; what they hand out is the one global order."""
    whole_loader = make_loader(many, "native", batch_size=40)
    steps = whole_loader.steps_per_epoch
    whole = take(whole_loader, 2 * steps)
    states = []
    for epoch, world in ((0, 2), (1, 4)):
        for rank in range(world):
            loader = make_loader(many, path, rank, world, batch_size=40)
            assert loader.steps_per_epoch == steps
            if epoch:
                loader.load_state_dict(states[0])
            rows = 40 // world
            for batch, part in zip(whole[epoch * steps :], take(loader, steps), strict=False):
                assert same(batch.select(rank * rows, (rank + 1) * rows), part)
            states.append(loader.state_dict())
    assert states[0] == states[1]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' resident set size")
def test_memory_does_not_grow(many: Path, make_loader: MakeLoader, path: str) -> None:
    """6400 clips hold 56 MB of samples."""
    loader = make_loader(many, path, crop_seconds=None, batch_size=64)
    for _ in range(50):
        next(loader)
    before = resident_bytes()
    for _ in range(100):
        next(loader)
    assert resident_bytes() - before < 20e6


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@needs_dali
def test_a_refused_member_costs_its_run_and_nothing_after_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dali_module, "_CLIPS_PER_RUN", 2)
    waves = [np.arange(n, dtype=np.int16) for n in (700, 5, 2_000, 60, 1_000)]
    flacs = [encode_flac_int16(wave) for wave in waves]
    decoder = DaliDecoder(2)
    for bad in (flacs[2][:-30], b"no audio", b""):
        members = zip([*flacs[:2], bad, *flacs[3:]], waves, strict=True)
        stretches = [Stretch(flac, len(wave), len(wave) // 3, len(wave) // 2) for flac, wave in members]
        packed, offsets = allocate([stretch.frames for stretch in stretches])
        assert decoder.decode(stretches, packed.numpy(), offsets.tolist()) == [True, True, False, False, True]
        for at in (0, 1, 4):
            wanted = waves[at][len(waves[at]) // 3 :][: len(waves[at]) // 2]
            assert packed[offsets[at] : offsets[at + 1]].tolist() == wanted.tolist()
        (message,) = caplog.messages
        assert message.startswith(("DALI refused 2 clips (Error decoding", "DALI refused 2 clips (Failed to open"))
        assert "\n" not in message
        caplog.clear()
    decoder.close()


@needs_dali
def test_two_channels_are_refused() -> None:
    stereo = io.BytesIO()
    sf.write(stereo, np.zeros((800, 2), np.int16), 16_000, format="FLAC", subtype="PCM_16")
    assert DaliDecoder(1).decode([Stretch(stereo.getvalue(), 800, 0, 800)], np.zeros(800, np.int16), [0]) == [False]


def test_auto_takes_our_own_decoder_where_it_was_built_else_dali_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if flac_library().handle is not None:
        line = f"loader: native (auto); FLAC decoder: native, {flac_library().about}"
        assert choose_decoder("auto", "cpu", 1) == choose_decoder("auto", "cuda", 1) == (None, line)
    monkeypatch.setattr(dali_module, "flac_library", lambda: NativeLibrary(None, "not here"))
    monkeypatch.setattr(flac_module, "flac_library", lambda: NativeLibrary(None, "not here"))
    decoder, line = choose_decoder("auto", "cpu", 1)
    assert decoder is None
    assert line == "loader: native (auto: dali is for cuda, this is cpu); FLAC decoder: soundfile (native: not here)"
    assert choose_decoder("native", "cuda", 1)[0] is None
    if not dali_problem():
        assert isinstance(choose_decoder("auto", "cuda", 1)[0], DaliDecoder)
        assert isinstance(choose_decoder("dali", "cpu", 1)[0], DaliDecoder)

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(dali_module.importlib, "import_module", absent)
    assert choose_decoder("auto", "cuda", 1)[1].startswith("loader: native (auto: nvidia.dali cannot be imported")
    with pytest.raises(InputError, match=r"data.loader is dali, but nvidia.dali cannot.*\[dali\], or set it to native"):
        choose_decoder("dali", "cpu", 1)


def test_an_old_dali_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "1.53.0"

    monkeypatch.setattr(dali_module.importlib, "import_module", lambda _: Old)
    assert dali_problem() == "DALI is 1.53.0, older than 2.0"
