"""The native libraries: all implementations under sanitizers, the GPU's kernel without a GPU, what is missing."""

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cacophony.kernels import native
from cacophony.kernels.native import library_path, load_library, native_library
from cacophony.kernels.triton_runtime import HAS_TRITON

HERE = Path(__file__).parent / "csrc"
SOURCES = Path(native.__file__).parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("clang++")
LANES = {"baseline": ["-DCACOPHONY_LANES=4"]}
if platform.machine() == "x86_64":
    LANES["baseline"] += ["-DCACOPHONY_X86"]
    LANES["avx2"] = ["-DCACOPHONY_LANES=8", "-mavx2", "-mfma"]
    LANES["avx512"] = ["-DCACOPHONY_LANES=16", "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"]


def build_check(folder: Path, sanitizers: str) -> Path:
    """Compile csrc/log_mel_check.cpp with all that it checks."""
    assert COMPILER is not None
    command = [COMPILER, "-std=c++17", "-O1", "-Wno-psabi", f"-I{SOURCES}", f"-fsanitize={sanitizers}"]
    x86 = ["-DCACOPHONY_X86"] if "avx2" in LANES else []
    jobs = {"cpu": [*x86, SOURCES / "log_mel_cpu.cpp"], "check": [*x86, HERE / "log_mel_check.cpp"]}
    for name, options in LANES.items():
        entry = f"-DCACOPHONY_COMPUTE_FRAMES=compute_frames_{name}"
        jobs[name] = [*options, entry, SOURCES / "log_mel_lanes.cpp"]

    def build(name: str, arguments: list[str | Path]) -> Path:
        result = subprocess.run(
            [*command, *arguments, "-o", folder / name], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return folder / name

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda job: build(f"{job[0]}.o", ["-c", *job[1]]), jobs.items()))
    return build("log_mel_check", [*objects, "-pthread"])


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("sanitizers", ["address", "thread"])
def test_every_implementation_is_the_definition_and_clean(tmp_path: Path, sanitizers: str) -> None:
    """Odd lengths, both sample types, all instruction sets, threads, and the CUDA kernels on threads of the machine."""
    result = subprocess.run([build_check(tmp_path, sanitizers)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    names = set(re.findall(r"(.+):", result.stdout))
    assert {"baseline float", "3 threads int16", "cuda kernel int16"} <= names
    assert {"threads float, some", "cuda kernel int16, columns"} <= names


@pytest.mark.skipif(not HAS_TRITON, reason="cuobjdump comes with Triton, which is not installed")
def test_the_cuda_kernels_spill_nothing() -> None:
    from triton import knobs

    path = library_path("cuda")
    if path is None:
        pytest.skip("the library for GPUs was not built: no nvcc")
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", path]
    usage = subprocess.run(command, capture_output=True, text=True, check=True)
    resources = r"log_mel_(?:patches_)?kernel.*?REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    kernels = re.findall(resources, usage.stdout, re.DOTALL)
    assert len(kernels) == 8  # frames and patches of int16 and float for sm_80 and sm_90
    for registers, stack, shared, local in kernels:
        assert int(stack) == int(local) == 0
        # Three blocks of 256 threads on an A100, four on an H100.
        assert int(registers) <= 64
        assert int(shared) <= 48 * 1024


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_library_for_gpus_loads_without_one_and_says_what_cuda_says() -> None:
    path = library_path("cuda")
    if path is None:
        pytest.skip("the library for GPUs was not built: no nvcc")
    functions = load_library("cuda", path).functions
    for error in (
        functions.cacophony_log_mel_cuda(None, 0, None, None, 1, 1, None, 0, None),
        functions.cacophony_log_mel_patches_cuda(None, 0, None, None, 1, 1, None, 1, None, 0, None),
    ):
        assert error != 0
        assert b"CUDA" in functions.cacophony_cuda_error(error)


def test_a_library_that_does_not_load_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "_native_cpu.abi3.so"
    broken.write_text("not a library")
    found = load_library("cpu", broken)
    assert found.handle is None
    assert re.search(r"does not load .*invalid ELF header|does not load .*file too short", found.about)
    with pytest.raises(RuntimeError, match="does not load"):
        _ = found.functions


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library_path("cpu")
    if path is None:
        pytest.skip("the library for CPUs was not built: no C++ compiler")
    assert load_library("cpu", path).handle is not None
    version = native.ABI_VERSION
    monkeypatch.setattr(native, "ABI_VERSION", 0)
    found = load_library("cpu", path)
    assert found.handle is None
    assert f"version {version}, expected 0" in found.about


def test_a_library_that_was_not_built_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_path", lambda device_type: None)
    found = native_library.__wrapped__("cpu")
    assert found.handle is None
    assert "install a C++ compiler" in found.about


def test_the_version_here_is_that_of_the_header() -> None:
    header = (SOURCES / "native.h").read_text()
    assert f"kAbiVersion = {native.ABI_VERSION};" in header
