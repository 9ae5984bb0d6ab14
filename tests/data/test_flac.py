"""The native FLAC decoder: bit for bit what was encoded and what libsndfile decodes, or a refusal."""

import io
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from cacophony.data import audio, flac
from cacophony.data.audio import AudioError, decode_flac_by_soundfile, decode_flac_int16, encode_flac_int16
from cacophony.data.flac import (
    NativeDecoder,
    Stretch,
    decode_native,
    flac_decoder,
    flac_library,
    library_path,
    load_library,
    native_decoder,
    native_samples,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from .flac_streams import Residual, Subframe, crc, frame, stream

pytestmark = pytest.mark.skipif(flac_library().handle is None, reason=flac_library().about)

KINDS = ("noise", "tone", "silence", "steps", "loud")


def signal(kind: str, samples: int, seed: int) -> np.ndarray:
    """Int16 `[samples]`."""
    rng, t = np.random.default_rng(seed), np.arange(samples)
    wave = {
        "noise": lambda: rng.normal(0, 3_000, samples),
        "tone": lambda: 9_000 * np.sin(0.05 * t) + 4_000 * np.sin(0.31 * t) + rng.normal(0, 3, samples),
        "silence": lambda: np.zeros(samples) + seed % 7,
        "steps": lambda: 256 * np.cumsum(rng.integers(-3, 4, samples)),
        "loud": lambda: rng.choice([-32_768, 32_767], samples),
    }[kind]()
    return np.clip(np.rint(wave), -32_768, 32_767).astype(np.int16)


def encoded(wave: np.ndarray, **values: object) -> bytes:
    file = io.BytesIO()
    settings = {"samplerate": 16_000, "format": "FLAC", "subtype": "PCM_16"} | values
    sf.write(file, wave, **settings)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 20_000),
    st.sampled_from([0.0, 0.3, 0.625, 1.0]),
    st.sampled_from(["PCM_16", "PCM_S8"]),
    st.data(),
)
def test_it_is_what_libsndfile_decodes_whole_and_in_part(
    kind: str, samples: int, level: float, subtype: str, data: st.DataObject
) -> None:
    wave = signal(kind, samples, samples)
    member = encoded(wave, subtype=subtype, compression_level=level)
    assert native_samples(member) == samples
    whole = decode_native(member, 0, samples)
    assert np.array_equal(whole, decode_flac_by_soundfile(member))
    assert subtype == "PCM_S8" or np.array_equal(whole, wave)
    start = data.draw(st.integers(0, samples))
    frames = data.draw(st.integers(0, samples - start))
    assert np.array_equal(decode_native(member, start, frames), whole[start : start + frames])


LENGTHS = st.sampled_from([1, 2, 15, 16, 17, 31, 64, 192, 200, 256, 257, 576])


@st.composite
def subframes(draw: st.DrawFn, block: int, bits: int) -> tuple[Subframe, list[int]]:
    """A way to write a frame, and samples for it."""
    wasted = draw(st.sampled_from([0, 0, 0, 1, bits - 1]))
    peak = draw(st.integers(0, (1 << (bits - wasted - 1)) - 1))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    samples = rng.integers(-peak - 1, peak, block, endpoint=True).tolist()
    kind = draw(st.sampled_from(["constant", "verbatim", "fixed", "lpc", "lpc"]))
    subframe = Subframe(kind, wasted=wasted)
    if kind == "constant":
        samples = samples[:1] * block
    if kind == "fixed":
        subframe = replace(subframe, order=draw(st.integers(0, min(4, block))))
    if kind == "lpc":
        order, precision = draw(st.integers(1, min(32, block))), draw(st.integers(2, 15))
        largest = (1 << (precision - 1)) - 1
        coefficients = rng.integers(-largest - 1, largest, order, endpoint=True).tolist()
        subframe = replace(subframe, order=order, precision=precision, coefficients=coefficients)
        subframe = replace(subframe, shift=draw(st.integers(max(0, precision + 5 - bits), 15)))
    if kind in ("fixed", "lpc"):
        subframe = replace(subframe, residual=draw(residuals(block, subframe, samples)))
    return subframe, [sample << wasted for sample in samples]


@st.composite
def residuals(draw: st.DrawFn, block: int, subframe: Subframe, samples: list[int]) -> Residual:
    """A way to write residuals that takes no more than some hundred bits for each."""
    possible = [n for n in range(9) if block % (1 << n) == 0 and block >> n >= subframe.order]
    needed = max(map(abs, subframe.residuals(samples)), default=0).bit_length()
    method = 1 if needed > 20 else draw(st.integers(0, 1))
    lowest, highest = max(0, needed - 6), (14, 30)[method]
    choices = [st.none(), *([st.integers(lowest, highest)] if lowest <= highest else [])]
    parameters = draw(st.lists(st.one_of(choices), min_size=1, max_size=4))
    return Residual(method, draw(st.sampled_from(possible)), parameters)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """A stream of all that the format has for one channel, and its samples as int16."""
    bits, by_sample = draw(st.sampled_from([8, 16])), draw(st.booleans())
    count, block = draw(st.integers(1, 20)), draw(LENGTHS)
    lengths = [draw(LENGTHS) if by_sample else block for _ in range(count - 1)] + [draw(st.integers(1, block))]
    frames, wave = [], []
    for number, length in enumerate(lengths):
        subframe, samples = draw(subframes(length, bits))
        place = len(wave) if by_sample else number
        codes = {"rate_code": draw(st.sampled_from([0, 5, 12, 13, 14])), "bits_code": draw(st.sampled_from([0, None]))}
        frames.append(
            frame(
                samples, place, subframe, by_sample=by_sample, bits=bits, short_block_code=draw(st.booleans()), **codes
            )
        )
        wave += samples
    blocks = (min(lengths), max(lengths)) if by_sample else (block, block)
    metadata = [(1, bytes(draw(st.integers(0, 20)))), (4, b"\xff\xf8\xff\xf9")][: draw(st.integers(0, 2))]
    return stream(frames, len(wave), blocks=blocks, bits=bits, metadata=metadata), np.array(wave, np.int16) << (
        16 - bits
    )


@settings(max_examples=60)
@given(streams(), st.data())
def test_it_decodes_all_that_the_format_has(written: tuple[bytes, np.ndarray], data: st.DataObject) -> None:
    member, wave = written
    assert native_samples(member) == len(wave)
    assert np.array_equal(decode_native(member, 0, len(wave)), wave)
    start = data.draw(st.integers(0, len(wave)))
    frames = data.draw(st.integers(0, len(wave) - start))
    assert np.array_equal(decode_native(member, start, frames), wave[start : start + frames])


@pytest.mark.parametrize("by_sample", [False, True])
def test_it_finds_a_stretch_among_thousands_of_frames_and_false_headers(by_sample: bool) -> None:
    """Numbers of frames in 1 to 3 bytes, of samples in up to 4; every frame holds what looks like another's header."""
    rng = np.random.default_rng(0)
    frames, wave = [], []
    for number in range(3_000):
        length = int(rng.integers(40, 60)) if by_sample and number < 2_999 else 50
        samples = rng.integers(-32_768, 32_768, length).tolist()
        false = frame(
            [0] * 50, (number * 7 + 100) * (50 if by_sample else 1), Subframe("constant"), by_sample=by_sample
        )
        samples[:4] = np.frombuffer(false[:8], ">i2").tolist()
        frames.append(frame(samples, len(wave) if by_sample else number, Subframe(), by_sample=by_sample))
        wave += samples
    member = stream(frames, len(wave), blocks=(40, 59) if by_sample else (50, 50))
    for start in rng.integers(0, len(wave), 200).tolist():
        frames = int(rng.integers(0, min(500, len(wave) - start) + 1))
        assert decode_native(member, start, frames).tolist() == wave[start : start + frames]


def one(samples: list[int], subframe: Subframe, **values: Any) -> bytes:
    return stream([frame(samples, 0, subframe, **values)], len(samples))


def checksummed(member: bytes, at: int, value: int) -> bytes:
    """The only frame of a stream with another byte, counted from its beginning, and the CRC-16 of that."""
    body = bytearray(member[42:-2])
    body[at] = value
    return member[:42] + bytes(body) + crc(bytes(body), 0x18005, 16).to_bytes(2, "big")


LINE = list(range(100))
WHOLE = one(LINE, Subframe("fixed", 1, residual=Residual(0, 0, [2])))
ENDLESS = Subframe("lpc", 1, [1], precision=2)  # each sample is the one before


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (WHOLE[:42] + b"\0" * 10, "no frame where one has to be"),
        (WHOLE[:42] + bytes([*WHOLE[42:46], 1, *WHOLE[47:]]), "no frame where one has to be"),  # CRC-8
        (WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]), "CRC-16 is wrong"),
        (WHOLE[:-1], "ends before"),
        (WHOLE[:60], "cannot be read"),
        (stream([frame(LINE, 0, Subframe())], 101), "shorter or longer than declared"),
        (stream([frame(LINE, 0, Subframe())], 99), "more samples than it declares"),
        (stream([frame(LINE, 0, Subframe())] * 2, 100, blocks=(100, 100)), "more samples than it declares"),
        (stream([frame(LINE, 0, Subframe())] * 2, 200, blocks=(100, 100)), "belongs elsewhere"),
        (stream([frame(LINE, 1, Subframe())], 100), "belongs elsewhere"),
        (stream([frame(LINE, 0, Subframe()), frame(LINE, 1, Subframe())], 200), "shorter or longer"),
        (one(LINE, Subframe(), rate_code=4), "no frame"),
        (one(LINE, Subframe(), bits_code=1), "no frame"),
        (one(LINE, Subframe(), channels_code=1), "no frame"),
        (checksummed(WHOLE, 7, 0x80), "cannot be read"),  # a bit that has to be 0
        (checksummed(WHOLE, 7, 2 << 1), "cannot be read"),  # a type that is none
        (one(LINE, replace(ENDLESS, shift=31)), "cannot be read"),
        (one(LINE, replace(ENDLESS, precision=16)), "cannot be read"),
        (one(LINE, Subframe("fixed", 0, residual=Residual(2, 0, [2]))), "cannot be read"),
        (one(LINE, Subframe("fixed", 0, residual=Residual(0, 3, [2]))), "cannot be read"),
        (one([9, 99_999, 9], Subframe("fixed", 0, residual=Residual(1, 0, [15]))), "outside its bits"),
        (one([0, 2**30 - 1, 1 - 2**30, 5], Subframe("fixed", 0, residual=Residual(0, 0, [None]))), "outside its bits"),
        (stream([], 100, metadata=[(1, b"1234")])[:-2], "ends before"),
        (stream([], 100, metadata=[(127, b"1234")]), "no frame"),
    ],
)
def test_what_is_wrong_is_refused_and_said(member: bytes, problem: str) -> None:
    samples = native_samples(member)
    assert samples > 0
    with pytest.raises(ValueError, match=problem):
        decode_native(member, 0, samples)


def test_samples_that_are_not_there_are_refused() -> None:
    for start, frames in ((0, 101), (100, 1), (101, 0), (-1, 2)):
        with pytest.raises(ValueError, match="not declared"):
            decode_native(WHOLE, start, frames)
    assert decode_native(WHOLE, 100, 0).tolist() == []


def test_streams_of_other_kinds_are_soundfiles() -> None:
    wave = signal("noise", 3_000, 0)
    others = {
        "24 bits": encoded(wave, subtype="PCM_24"),
        "stereo": encoded(np.stack([wave, wave], 1)),
        "8 kHz": encoded(wave, samplerate=8_000),
        "no length": stream([frame(LINE, 0, Subframe())], 0),
        "a tag before it": b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + encoded(wave),
        "too long to be true": stream([frame(LINE, 0, Subframe())], 1 << 34),
        "no audio": b"fLaC",
        "nothing": b"",
    }
    assert {name: native_samples(member) for name, member in others.items()} == dict.fromkeys(others, -1)
    assert np.array_equal(decode_flac_int16(others["24 bits"], 100, 50), wave[100:150])
    for name in ("stereo", "8 kHz", "no audio", "nothing"):
        with pytest.raises(AudioError):
            decode_flac_int16(others[name])


@pytest.mark.parametrize("kind", ["noise", "tone", "silence"])
def test_any_one_damaged_byte_is_seen_or_changes_nothing(kind: str) -> None:
    wave = signal(kind, 700, 3)
    member = encoded(wave)
    rng = np.random.default_rng(0)
    for at in range(len(member)):
        changed = bytearray(member)
        changed[at] ^= 1 << int(rng.integers(8))
        for start, frames in ((0, 700), (500, 100)):
            try:
                found = decode_native(bytes(changed), start, frames)
            except ValueError:
                continue
            assert np.array_equal(found, wave[start : start + frames])
        with pytest.raises(ValueError, match="FLAC"):
            decode_native(member[:at], 0, 700)


def test_what_it_refuses_is_libsndfiles_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    member = encoded(signal("noise", 500, 0))
    judged = []
    monkeypatch.setattr(audio, "decode_flac_by_soundfile", lambda *asked: judged.append(asked) or np.zeros(1, np.int16))
    decode_flac_int16(member)
    assert judged == []
    damaged = member[:-3] + b"abc"
    assert decode_flac_int16(damaged, 5, 9).tolist() == [0]
    assert judged == [(damaged, 5, 9)]


def test_without_the_library_soundfile_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flac, "library_path", lambda: None)
    monkeypatch.setattr(flac, "flac_library", flac_library.__wrapped__)
    wave = signal("tone", 3_000, 0)
    assert np.array_equal(decode_flac_int16(encode_flac_int16(wave), 7, 900), wave[7:907])
    with ThreadPoolExecutor(1) as pool:
        assert native_decoder(pool, 1) is None
    line = flac_decoder()
    assert line.startswith("FLAC decoder: soundfile (native: its library was not built")
    assert "install a C++ compiler" in line
    with pytest.raises(RuntimeError, match="no native library"):
        decode_native(encode_flac_int16(wave), 0, 1)


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library_path()
    assert path is not None
    assert re.fullmatch(r"FLAC decoder: native, instruction set (avx2|baseline)", flac_decoder())
    header = (Path(flac.__file__).parent / "csrc" / "flac.h").read_text()
    assert f"kFlacAbiVersion = {flac.ABI_VERSION};" in header
    monkeypatch.setattr(flac, "ABI_VERSION", 0)
    assert "expected 0" in load_library(path).about


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_is_decoded_to_where_it_lies_and_nowhere_else(threads: int) -> None:
    waves = [signal(kind, 9_000 + 50 * i, i) for i, kind in enumerate(KINDS)]
    stretches = [Stretch(encode_flac_int16(wave), len(wave), 100 * i, 5_000) for i, wave in enumerate(waves)]
    stretches[2] = replace(stretches[2], flac=stretches[2].flac[:-9], start=4_000)
    packed = np.full(40_000, 77, np.int16)
    places = [10, 5_020, 30_000, 12_000, 20_000]
    with ThreadPoolExecutor(threads) as pool:
        decoder = NativeDecoder(pool, threads)
        assert all(map(decoder.accepts, stretches))
        assert not decoder.accepts(replace(stretches[0], frames=8_999, start=2))
        assert decoder.decode(stretches, packed, places) == [True, True, False, True, True]
        with pytest.raises(ValueError, match="samples 39000 to 44000 of 40000"):
            decoder.decode(stretches[:1], packed, [39_000])
        with pytest.raises(ValueError, match="a contiguous int16 vector"):
            decoder.decode(stretches[:1], packed[::2], [0])
    for i in (0, 1, 3, 4):
        assert np.array_equal(packed[places[i] : places[i] + 5_000], waves[i][100 * i : 100 * i + 5_000])
        packed[places[i] : places[i] + 5_000] = 77
    packed[30_000:35_000] = 77
    assert (packed == 77).all()


HERE, SOURCES = Path(__file__).parent / "csrc", Path(flac.__file__).parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("clang++")
LOOPS = {"baseline": ["-DCACOPHONY_LANES=4"]}
if "avx2" in flac_library().about:
    LOOPS["avx2"] = ["-DCACOPHONY_LANES=8", "-mavx2", "-mbmi", "-mbmi2", "-mlzcnt", "-mpclmul"]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Compile csrc/flac_check.cpp with all that it checks; returns what it writes for some arguments."""
    assert COMPILER is not None
    folder = tmp_path_factory.mktemp("check")
    command = [COMPILER, "-std=c++17", "-O1", "-Wno-psabi", f"-I{SOURCES}", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=all", *(["-DCACOPHONY_X86"] if "avx2" in LOOPS else [])]
    jobs: dict[str, list[Any]] = {name: [SOURCES / f"{name}.cpp"] for name in ("flac_frame", "flac_decode")}
    jobs["flac_check"] = [HERE / "flac_check.cpp"]
    for name, options in LOOPS.items():
        jobs[name] = [*options, f"-DCACOPHONY_FLAC_LOOPS={name}", SOURCES / "flac_loops.cpp"]

    def run(*words: object) -> bytes:
        result = subprocess.run(list(map(str, words)), capture_output=True, check=False)
        assert result.returncode == 0, result.stdout[-500:] + result.stderr
        return result.stdout

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: run(*command, "-c", *job[1], "-o", folder / f"{job[0]}.o"), jobs.items()))
    run(*command, *folder.glob("*.o"), "-o", folder / "flac_check")
    return lambda *words: run(folder / "flac_check", *words)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("loops", LOOPS)
def test_every_implementation_is_right_and_reads_nothing_outside(
    tmp_path: Path, loops: str, check: Callable[..., bytes]
) -> None:
    """Sound streams, then damaged ones, half of which have right checksums again, under sanitizers."""
    files = []
    for i, kind in enumerate(KINDS):
        wave = signal(kind, 4_096 * i + 1_000, i)
        files.append(tmp_path / f"{kind}.flac")
        files[-1].write_bytes(encoded(wave, compression_level=i / 4))
        assert np.array_equal(np.frombuffer(check(loops, "decode", files[-1]), np.int16), wave)
    odd = {
        "orders": (
            [t * t % 251 for t in range(64)],
            Subframe("lpc", 32, [3, -1] * 16, residual=Residual(1, 1, [8, None])),
        ),
        "wide": (LINE, Subframe("lpc", 8, [16_383] * 8, shift=14, residual=Residual(0, 2, [9]))),
        "wasted": ([8 * t for t in LINE], Subframe("fixed", 4, wasted=3, residual=Residual(0, 2, [1]))),
    }
    for name, (samples, subframe) in odd.items():
        files.append(tmp_path / f"{name}.flac")
        frames, block = [frame(samples, i, subframe) for i in range(6)], len(samples)
        files[-1].write_bytes(stream(frames, 6 * block, blocks=(block, block)))
        assert np.frombuffer(check(loops, "decode", files[-1]), np.int16).tolist() == 6 * samples
    said = check(loops, "damage", 1, 3_000, *files).decode()
    sound = re.fullmatch(rf"{loops}: 3000 streams, (\d+) of them sound\n", said)
    assert sound is not None
    assert int(sound[1]) > 100
