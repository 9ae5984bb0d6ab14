"""The commit of a checkout is read without git, however git keeps it."""

from pathlib import Path

import torch
from cacophony.bench.machine import commit, machine

HASH, OTHER = "0123456789" * 4, "f" * 40


def test_a_branch_is_a_file_or_a_packed_line(tmp_path: Path) -> None:
    git = tmp_path / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/work\n")
    assert commit(tmp_path) is None
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{OTHER} refs/heads/rework\n{HASH} refs/heads/work\n")
    assert commit(tmp_path) == HASH
    (git / "refs/heads").mkdir(parents=True)
    (git / "refs/heads/work").write_text(f"{OTHER}\n")
    assert commit(tmp_path) == OTHER


def test_a_detached_head_is_the_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text(f"{HASH}\n")
    assert commit(tmp_path) == HASH


def test_a_linked_worktree_keeps_its_branch_with_the_main_one(tmp_path: Path) -> None:
    main, linked = tmp_path / "main/.git", tmp_path / "linked"
    (main / "refs/heads").mkdir(parents=True)
    (main / "refs/heads/side").write_text(HASH)
    (main / "worktrees/linked").mkdir(parents=True)
    (main / "worktrees/linked/HEAD").write_text("ref: refs/heads/side\n")
    (main / "worktrees/linked/commondir").write_text("../..\n")
    linked.mkdir()
    (linked / ".git").write_text(f"gitdir: {main / 'worktrees/linked'}\n")
    assert commit(linked) == HASH


def test_what_is_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert commit(tmp_path) is None


def test_the_machine_names_device_versions_and_date() -> None:
    about = machine(torch.device("cpu"))
    assert about["device"]
    assert about["driver"] is None
    assert about["versions"]["torch"] == torch.__version__
    assert about["date"][:2] == "20"
