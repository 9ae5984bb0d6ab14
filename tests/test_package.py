"""The installed package: nothing leaks out of it, and importing it is cheap."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ["engine", "kernels", "models", "data", "bench", "tests"]


def run(code: str) -> str:
    """Run ``code`` in a fresh interpreter outside the repository; returns what it prints."""
    result = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_no_room_is_importable_as_a_top_level_package() -> None:
    """The environment may hold packages of these names (Hugging Face has a `kernels`): they must not be ours."""
    code = f"""
import importlib.util, pathlib
package = importlib.util.find_spec("cacophony")
homes = {{pathlib.Path(place).resolve() for place in package.submodule_search_locations}}
homes.add(pathlib.Path(package.origin).resolve().parent)
for name in {ROOMS}:
    spec = importlib.util.find_spec(name)
    if spec is None:
        continue
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.has_location else [])]
    for place in places:
        parents = {{pathlib.Path(place).resolve(), *pathlib.Path(place).resolve().parents}}
        if parents & homes:
            print(name, place)
"""
    assert run(code) == ""


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = """
import sys, cacophony
print([name for name in ("torch", "soundfile", "transformers", "numpy", "matplotlib") if name in sys.modules])
"""
    assert run(code).strip() == "[]"


def test_load_resolves_on_first_use() -> None:
    code = """
import sys, cacophony
print(callable(cacophony.load), callable(cacophony.Cacophony), "torch" in sys.modules)
try:
    cacophony.loda
except AttributeError as error:
    print(error)
"""
    assert run(code).splitlines() == ["True True True", "module 'cacophony' has no attribute 'loda'"]


def test_a_new_kernel_file_is_one_that_data_may_not_import() -> None:
    """import-linter knows no exceptions to a package, so its list is held to the files here."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    forbidden = {name.rpartition(".")[2] for name in settings[1]["forbidden_modules"]}
    files = {path.stem for path in (ROOT / "kernels").glob("*.py")} | {
        path.parent.name for path in (ROOT / "kernels").glob("*/__init__.py")
    }
    assert files - forbidden == {"__init__", "backend", "counter_rng", "layout", "log_mel", "spec", "triton_runtime"}
