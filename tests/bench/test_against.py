"""The same bench at another commit: its ops, this checkout's bench, in turns."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cacophony.bench import against
from cacophony.bench.against import compare_with, comparison_table
from cacophony.bench.from_checkout import ROOT
from cacophony.bench.kernels import KernelSettings
from cacophony.errors import InputError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

SETTINGS = KernelSettings(ops=["layer_norm"], cases=["odd", "one row"], providers=["reference"], rounds=1, seconds=1e-3)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of this package whose one commit has no case "one row" and no bench, under a name of its own."""
    root = tmp_path / "elsewhere"
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("kernels", "bench"):
        shutil.copytree(ROOT / name, root / name, ignore=skip)
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / name, root / name)
    file = root / "kernels" / "layer_norm.py"
    now = file.read_text(encoding="utf-8")
    file.write_text(now.replace('Case("one row"', 'Case("a single row"'), encoding="utf-8")
    git = ["git", "-C", str(root), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "--quiet"], ["add", "kernels", "*.py"], ["commit", "--quiet", "-m", "before"]):
        subprocess.run([*git, *words], check=True)
    file.write_text(now, encoding="utf-8")
    monkeypatch.setattr(against, "ROOT", root)
    return root


def test_both_sides_are_timed_and_what_one_lacks_is_said(checkout: Path) -> None:
    files = sorted(path for path in checkout.rglob("*") if ".git" not in path.parts and "__pycache__" not in path.parts)
    found = compare_with("HEAD", SETTINGS)
    assert [(c.case, c.pass_) for c in found] == [
        (case, name) for case in ("odd", "one row") for name in ("forward", "backward", "both")
    ]
    for comparison in found[:3]:
        assert comparison.reason is None
        assert comparison.here_ms is not None
        assert comparison.base_ms is not None
        assert comparison.base_over_here == pytest.approx(comparison.base_ms / comparison.here_ms)
    for comparison in found[3:]:
        assert comparison.here_ms is not None
        assert comparison.reason == "base: has no such op, case or pass"
        assert comparison.base_over_here is None
    assert "has no such op, case or pass" in comparison_table("HEAD", found)
    after = sorted(path for path in checkout.rglob("*") if ".git" not in path.parts and "__pycache__" not in path.parts)
    assert after == files


@pytest.mark.parametrize("ref", ["no-such-branch", "--help", ""])
def test_what_is_no_ref_is_refused(checkout: Path, ref: str) -> None:
    with pytest.raises(InputError, match="is no commit, branch or tag"):
        compare_with(ref, SETTINGS)
