"""A run killed at any moment and continued ends byte for byte where the uninterrupted one ends."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from cacophony.__main__ import main
from cacophony.engine import telemetry
from cacophony.engine.checkpoint import checkpoints, latest_checkpoint
from cacophony.engine.config import Stage
from cacophony.engine.run_directory import held

# Runs the command of ARGV, but at the COUNT-th call of PLACE the process gets SIGNAL.
DRIVER = """
import importlib, os, sys
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(log, 1)
os.dup2(log, 2)
module, _, path = {place!r}.partition(":")
owner = importlib.import_module(module)
*inner, name = path.split(".")
for part in inner:
    owner = getattr(owner, part)
real, calls = getattr(owner, name), 0
def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == {count}:
        os.kill(os.getpid(), {signal})
    return real(*args, **kwargs)
setattr(owner, name, counted)
import cacophony.engine.telemetry as telemetry
telemetry.loss_curves = lambda *args: None  # most of the time of so short a run
from cacophony.__main__ import main
sys.exit(main({argv!r}))
"""
UPDATE = "cacophony.engine.update:Updater.update"  # once a step; SAM's two gradients lie in it
GRADIENT = "cacophony.engine.update:gradient_norm"  # twice a step with SAM
SYNC = "os:fsync"  # six times a checkpoint: four files, its directory, the one around
RENAME = "pathlib:Path.rename"  # once when the log is opened, then once a checkpoint
START = "cacophony.engine.trainer:write_record"

Interrupt = Callable[[str, int, signal.Signals, list[str]], tuple[int | None, str]]


@pytest.fixture(autouse=True)
def no_pictures(mae_run: Path, contrastive_run: Path, monkeypatch: pytest.MonkeyPatch):
    """Pictures are most of the time of so short a run; the uninterrupted runs have theirs."""
    monkeypatch.setattr(telemetry, "loss_curves", lambda *_: None)


@pytest.fixture(scope="module")
def interrupt(start_python: Callable[[str], BaseProcess], tmp_path_factory: pytest.TempPathFactory) -> Interrupt:
    """Run a command that gets a signal at the `count`-th call of `place`; returns exit code and output."""

    def run(place: str, count: int, number: signal.Signals, argv: list[str]) -> tuple[int | None, str]:
        log = tmp_path_factory.mktemp("output") / "log"
        source = DRIVER.format(place=place, count=count, signal=int(number), argv=argv, log=str(log))
        process = start_python(source)
        process.join(120)
        return process.exitcode, log.read_text(encoding="utf-8")

    return run


def content(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("checkpoints", "tokenizer")
        for path in sorted((run / folder).rglob("*"))
        if path.is_file()
    }


def results(run: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock or the process."""
    measured = ("_per_s", "_share", "_bytes")
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if not name.endswith(measured)} for line in lines]


def assert_same_run(run: Path, uninterrupted: Path):
    found, expected = content(run), content(uninterrupted)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert [line["step"] for line in results(run)] == [1, 2, 3, 4, 5, 6]
    assert results(run) == results(uninterrupted)


@pytest.fixture
def uninterrupted(request: pytest.FixtureRequest, stage: Stage) -> Path:
    return request.getfixturevalue(f"{stage}_run")


@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        # Each run of the list is killed there and the next one continues it.
        ("mae", [(UPDATE, 2), (SYNC, 2), (RENAME, 2), (UPDATE, 4), (SYNC, 8)]),
        ("contrastive", [(START, 1), (GRADIENT, 4), (SYNC, 5), (GRADIENT, 2), (SYNC, 7)]),
    ],
)
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(
    interrupt: Interrupt,
    command: Callable[..., list[str]],
    tmp_path: Path,
    stage: Stage,
    kills: list[tuple[str, int]],
    uninterrupted: Path,
):
    out = tmp_path / "run"
    for place, count in kills:
        code, output = interrupt(place, count, signal.SIGKILL, command(stage, out, "--resume"))
        assert code == -signal.SIGKILL, (place, count, output)
    assert len(checkpoints(out)) > 0
    assert main(command(stage, out, "--resume")) == 0
    assert_same_run(out, uninterrupted)
    assert not [path for path in out.rglob(".*") if path.name.endswith(".tmp")]


def test_the_program_killed_as_soon_as_a_checkpoint_is_there_continues_identically(
    command: Callable[..., list[str]], tmp_path: Path, contrastive_run: Path
):
    out = tmp_path / "run"
    words = [sys.executable, "-m", "cacophony", *command("contrastive", out)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not checkpoints(out) and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        _, error = process.communicate()
    assert checkpoints(out), error.decode()
    assert main(command("contrastive", out, "--resume")) == 0
    assert_same_run(out, contrastive_run)


@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_a_request_to_stop_saves_and_the_run_continues_identically(
    interrupt: Interrupt, command: Callable[..., list[str]], tmp_path: Path, stage: Stage, uninterrupted: Path
):
    out = tmp_path / "run"
    code, output = interrupt(UPDATE, 1, signal.SIGTERM, command(stage, out))
    assert code == 0, output
    assert "stopped by SIGTERM after step 1" in output
    assert "--resume" in output
    assert latest_checkpoint(out).name == "step-00000001"
    code, output = interrupt(UPDATE, 2, signal.SIGINT, command(stage, out, "--resume"))
    assert code == 130, output
    assert latest_checkpoint(out).name == "step-00000003"
    assert main(command(stage, out, "--resume")) == 0
    assert_same_run(out, uninterrupted)


@pytest.mark.parametrize("stage", ["mae"])
def test_a_stop_at_the_last_step_is_the_end_of_the_run(
    interrupt: Interrupt, command: Callable[..., list[str]], tmp_path: Path, stage: Stage, uninterrupted: Path
):
    out = tmp_path / "run"
    code, output = interrupt(UPDATE, 6, signal.SIGTERM, command(stage, out))
    assert code == 0
    assert "6 steps done" in output
    assert_same_run(out, uninterrupted)


def test_a_finished_run_resumed_stays_as_it_is(command: Callable[..., list[str]], tmp_path: Path, mae_run: Path):
    out = tmp_path / "run"
    assert main(command("mae", out, "--resume")) == 0
    assert main(command("mae", out, "--resume")) == 0
    assert_same_run(out, mae_run)


@pytest.mark.parametrize("exists", [False, True])
def test_resume_starts_where_there_is_nothing(
    command: Callable[..., list[str]], tmp_path: Path, mae_run: Path, exists: bool
):
    out = tmp_path / "run"
    if exists:
        out.mkdir()
    assert main(command("mae", out, "--resume")) == 0
    assert_same_run(out, mae_run)


def test_what_cannot_change_the_result_may_change_on_resume(
    interrupt: Interrupt, command: Callable[..., list[str]], tmp_path: Path, contrastive_run: Path
):
    out = tmp_path / "run"
    interrupt(UPDATE, 4, signal.SIGKILL, command("contrastive", out))
    flags = ["--data.workers", "1", "--data.prefetch-batches", "5", "--keep-checkpoints", "3"]
    assert main(command("contrastive", out, "--resume", *flags)) == 0
    assert results(out) == results(contrastive_run)
    found, expected = content(out), content(contrastive_run)
    assert {name: found[name] for name in expected} == expected
    assert set(found) - set(expected) == {
        f"checkpoints/step-00000002/{name}"
        for name in ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
    }


def test_a_resumed_run_needs_only_its_directory_and_its_data(
    interrupt: Interrupt, command: Callable[..., list[str]], shards: Path, tmp_path: Path, mae_run: Path
):
    out = tmp_path / "run"
    interrupt(UPDATE, 4, signal.SIGTERM, command("mae", out))
    assert main(["train", "mae", "--data", str(shards), "--out", str(out), "--resume"]) == 0
    assert results(out) == results(mae_run)
    assert (
        content(out)["checkpoints/step-00000006/model.safetensors"]
        == (content(mae_run)["checkpoints/step-00000006/model.safetensors"])
    )


def test_fewer_steps_than_are_done_are_refused(
    command: Callable[..., list[str]], tmp_path: Path, mae_run: Path, refused: Callable[[list[str]], str]
):
    out = tmp_path / "run"
    shutil.copytree(mae_run, out)
    before = content(out)
    line = refused(command("mae", out, "--resume", "--steps", "4", "--allow-changed"))
    assert "step-00000006: 6 steps are done, and steps is 4; expected at least 6" in line
    assert content(out) == before
    assert (out / "run.json").read_bytes() == (mae_run / "run.json").read_bytes()


def test_a_run_that_another_process_trains_is_left_alone(
    interrupt: Interrupt, command: Callable[..., list[str]], tmp_path: Path, refused: Callable[[list[str]], str]
):
    out = tmp_path / "run"
    unfinished = out / "checkpoints" / ".step-00000002.tmp" / "model.safetensors"
    interrupt(SYNC, 1, signal.SIGKILL, command("mae", out))
    assert unfinished.exists()
    with held(out, is_new=False):
        assert "another process is training there" in refused(command("mae", out, "--resume"))
        assert unfinished.exists()
    with held(tmp_path / "new", is_new=True):
        assert "another process is training there" in refused(command("mae", tmp_path / "new"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    assert main(command("mae", tmp_path / "new")) == 0


@pytest.mark.parametrize("checkpoint_exists", [True, False])
def test_other_data_is_refused_and_nothing_changes(
    interrupt: Interrupt,
    command: Callable[..., list[str]],
    held_out_shards: Path,
    tmp_path: Path,
    checkpoint_exists: bool,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run"
    interrupt(SYNC, 7 if checkpoint_exists else 1, signal.SIGKILL, command("mae", out))
    assert bool(checkpoints(out)) == checkpoint_exists
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main([*command("mae", out, "--resume"), "--data", str(held_out_shards)]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert "fingerprint" in message or "data" in message
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


# From its second checkpoint on this process may write no file beyond 4 KiB; or while it writes that one.
DISK_FULL = """
import os, resource, signal, sys
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(log, 1)
os.dup2(log, 2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import cacophony.engine.checkpoint_writer as checkpoint_writer
real = checkpoint_writer.write_files
def write_files(run, snapshot):
    if snapshot.step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        return real(run, snapshot)
    finally:
        if {is_freed}:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint_writer.write_files = write_files
from cacophony.__main__ import main
sys.exit(main({argv!r}))
"""


@pytest.mark.parametrize(("is_freed", "failed"), [(True, [4]), (False, [4, 6])])
def test_on_a_full_disk_the_run_goes_on_and_says_what_is_missing(
    start_python: Callable[[str], BaseProcess],
    command: Callable[..., list[str]],
    tmp_path: Path,
    mae_run: Path,
    is_freed: bool,
    failed: list[int],
):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start_python(DISK_FULL.format(argv=command("mae", out), log=str(log), is_freed=is_freed))
    process.join(120)
    output = log.read_text(encoding="utf-8")
    assert process.exitcode == 3, output
    assert "Traceback" not in output
    assert "mae step 6" in output  # the training went on
    saved = [step for step in (2, 4, 6) if step not in failed]
    assert [path.name for path in checkpoints(out)] == [f"step-{step:08d}" for step in saved]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [path.name for path in checkpoints(out)]
    for step in failed:
        message = f"the checkpoint of step {step} could not be written"
        assert output.count(message) == 2, output  # when it happened, and at the end
    last = [line for line in output.splitlines() if line.startswith("cacophony: ")]
    assert len(last) == 1
    assert f"that of step {saved[0]} is the newest" in last[0]
    assert ("the log could not be written" in output) == (not is_freed)  # its pictures

    assert main(command("mae", out, "--resume")) == 0
    if not is_freed:
        assert_same_run(out, mae_run)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_previous_one_continues(
    command: Callable[..., list[str]],
    tmp_path: Path,
    mae_run: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run"
    shutil.copytree(mae_run, out)
    newest = latest_checkpoint(out)
    victim = newest / "optimizer.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        victim.write_bytes(content[:-1])
    elif damage == "flipped":
        content[-100] ^= 1
        victim.write_bytes(content)
    else:
        victim = newest / "manifest.json" if damage == "no manifest" else victim
        victim.unlink()
    assert main(command("mae", out, "--resume")) == 0
    said = capsys.readouterr().err
    assert victim.name in said
    assert "step-00000004 taken instead" in said
    assert "continuing from step 4" in said
    shutil.rmtree(out / "checkpoints" / "damaged-step-00000006")
    assert_same_run(out, mae_run)


def test_a_checkpoint_of_a_newer_format_is_refused_and_nothing_changes(
    command: Callable[..., list[str]], refused: Callable[[list[str]], str], tmp_path: Path, mae_run: Path
):
    out = tmp_path / "run"
    shutil.copytree(mae_run, out)
    manifest = latest_checkpoint(out) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    before = content(out)
    assert "is of format 2" in refused(command("mae", out, "--resume"))
    assert content(out) == before


def test_a_changed_configuration_is_named_and_continues_when_allowed(
    command: Callable[..., list[str]],
    refused: Callable[[list[str]], str],
    tmp_path: Path,
    mae_run: Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run"
    shutil.copytree(mae_run, out)
    changes = ["--steps", "8", "--batch-size", "10", "--seed", "3", "--update.weight-decay", "0.5"]
    line = refused(command("mae", out, "--resume", *changes))
    for change in ("steps = 6 (now 8)", "batch_size = 8 (now 10)", "seed = 0 (now 3)", "weight_decay = 0.01 (now 0.5)"):
        assert change in line
    assert "--allow-changed" in line
    assert main(command("mae", out, "--resume", "--allow-changed", *changes)) == 0
    assert "changed: " in capsys.readouterr().err
    assert [line["step"] for line in results(out)] == list(range(1, 9))
    assert json.loads((out / "run.json").read_text())["config"]["batch_size"] == 10
