"""The front door: exit codes, one-line errors that name what was wrong, and nothing written where the input is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from cacophony.__main__ import main
from cacophony.data.flac import flac_decoder
from cacophony.engine.commands import doctor_command
from cacophony.kernels import backend

COMMON = """
batch_size = 4
steps = 2
device = "cpu"
log_every_steps = 1
save_every_steps = 1
[update]
warmup_steps = 1
"""
AUDIO = "{ width = 16, layers = 1, heads = 2, mlp_width = 32 }"
MAE = f"{COMMON}[model]\nencoder = {AUDIO}\ndecoder = {AUDIO}\n"
CONTRASTIVE = f"""{COMMON}[model]
audio = {AUDIO}
text = {{ width = 16, layers = 1, heads = 2, mlp_width = 32, vocab_size = 300, max_positions = 40 }}
caption_layers = 1
pool_heads = 2
projection_width = 16
"""


@dataclass(frozen=True)
class Place:
    """A folder with a small corpus, its shards, and a finished run of each stage."""

    root: Path

    def __truediv__(self, name: str) -> str:
        return str(self.root / name)

    def train(self, stage: str, out: str, *flags: str) -> list[str]:
        named = ["--data", self / "shards", "--out", self / out, "--preset", "demo", "--config", self / f"{stage}.toml"]
        return ["train", stage, *named, *flags]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("cli"))
    (place.root / "audio").mkdir()
    rng = np.random.default_rng(0)
    lines = ["file,caption"]
    for i in range(8):
        soundfile.write(place.root / "audio" / f"{i}.wav", rng.normal(0, 0.1, 16_000 + 800 * i), 16_000)
        lines.append(f"{i}.wav,noise number {i}")
    (place.root / "captions.csv").write_text("\n".join(lines))
    (place.root / "mae.toml").write_text(MAE)
    (place.root / "contrastive.toml").write_text(CONTRASTIVE)
    assert main(["pack", place / "audio", "--out", place / "shards", "--captions", place / "captions.csv"]) == 0
    assert main(["pack", place / "audio", "--out", place / "mute"]) == 0
    assert main(place.train("mae", "run1")) == 0
    assert main(place.train("contrastive", "run2", "--init", place / "run1")) == 0
    return place


Refused = Callable[[list[str]], str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must exit with 2 and one line on stderr; returns the line."""

    def run(argv: list[str]) -> str:
        capsys.readouterr()
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == 1, captured.err
        assert captured.err.startswith("cacophony: ")
        assert captured.out == ""
        return captured.err

    return run


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "'trian' is unknown; did you mean train?"),
        (["retrieval"], "did you mean evaluate?"),
        (["train"], "`cacophony train` needs one of: mae, contrastive"),
        (["train", "stage1"], "mae, contrastive"),
        (["evaluate"], "retrieval"),
        (["train", "mae", "--preset", "demoo"], "did you mean demo?"),
        (["train", "mae", "--preset", "paper_stage2"], "did you mean paper_stage1?"),
        (["pack"], "AUDIO"),
        (["embed"], "RUN"),
    ],
)
def test_a_command_that_does_not_exist_is_refused_with_the_nearest(refused: Refused, argv: list[str], expected: str):
    assert expected.lower() in refused(argv).lower()


def test_shards_without_captions_cannot_be_evaluated(place: Place, refused: Refused, tmp_path: Path):
    argv = ["evaluate", "retrieval", place / "run2", "--data", place / "mute", "--json", str(tmp_path / "out.json")]
    assert "no captions" in refused(argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name,caption\n0.wav,a", "missing column file"),
        (b"file,text\n0.wav,a", "missing column caption"),
        ("file,caption\n0.wav,caf\u00e9".encode("latin-1"), "not UTF-8"),
        (b"", "missing column"),
        (None, "captions.csv"),
    ],
)
def test_a_wrong_captions_file_is_named(
    place: Place, refused: Refused, tmp_path: Path, content: bytes | None, expected: str
):
    csv = tmp_path / "captions.csv"
    if content is not None:
        csv.write_bytes(content)
    message = refused(["pack", place / "audio", "--out", str(tmp_path / "out"), "--captions", str(csv)])
    assert "captions.csv" in message
    assert expected in message
    assert {path.name for path in tmp_path.iterdir()} <= {"captions.csv"}


def test_a_folder_that_is_not_there_is_named(refused: Refused, tmp_path: Path):
    assert "absent" in refused(["pack", str(tmp_path / "absent"), "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_a_defect_in_the_corpus_is_counted_and_strictly_an_error(
    place: Place, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(place.root / "audio", tmp_path / "audio")
    (tmp_path / "audio" / "broken.wav").write_text("no sound")
    argv = ["pack", str(tmp_path / "audio"), "--out", str(tmp_path / "out")]
    assert "broken.wav" in refused([*argv, "--strict"])
    assert not (tmp_path / "out").exists()
    assert main(argv) == 0
    assert "8" in capsys.readouterr().out
    assert "broken.wav" in (tmp_path / "out" / "report.csv").read_text()


@pytest.mark.parametrize("command", ["embed", "caption"])
def test_a_file_that_is_missing_or_no_sound_is_named(place: Place, refused: Refused, tmp_path: Path, command: str):
    out = ["--out", str(tmp_path / "out.npz")] if command == "embed" else []
    (tmp_path / "text.wav").write_text("no sound")
    assert "absent.wav" in refused([command, place / "run2", place / "audio/0.wav", "absent.wav", *out])
    assert "is a folder; name the files in it" in refused([command, place / "run2", place / "audio", *out])
    assert "text.wav" in refused([command, place / "run2", str(tmp_path / "text.wav"), *out])
    assert "stage-1 model" in refused([command, place / "run1", place / "audio/0.wav", *out])
    assert "nowhere" in refused([command, place / "nowhere", place / "audio/0.wav", *out])
    assert "file" in refused([command, place / "run2", *out])
    assert [path.name for path in tmp_path.iterdir()] == ["text.wav"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--beams", "0"], "beams is 0"),
        (["--temperature", "0"], "temperature is 0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--method", "best"], "best"),
        (["--seed", "9223372036854775808"], "seed is 9223372036854775808"),
    ],
)
def test_a_wrong_flag_of_caption_is_named(place: Place, refused: Refused, flags: list[str], expected: str):
    assert expected in refused(["caption", place / "run2", place / "audio/0.wav", *flags])


def test_an_output_that_cannot_be_written_is_named_before_the_work(place: Place, refused: Refused, tmp_path: Path):
    for out in (tmp_path, tmp_path / "absent" / "out.npz"):
        assert str(out.parent if out.parent != tmp_path.parent else out) in refused(
            ["embed", place / "run2", place / "audio/0.wav", "--out", str(out)]
        )


def test_embed_writes_unit_vectors_and_names_without_pickle(place: Place, tmp_path: Path):
    files = [place / f"audio/{i}.wav" for i in (3, 1, 2)]
    out = tmp_path / "out.npz"
    assert main(["embed", place / "run2", *files, "--out", str(out)]) == 0
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["audio"].shape == (3, 16)
        assert arrays["audio"].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(arrays["audio"], axis=1), 1.0, atol=1e-5)
        assert arrays["names"].tolist() == files
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("method", ["sample", "greedy", "beam"])
def test_caption_prints_a_line_a_file(place: Place, capsys: pytest.CaptureFixture[str], method: str):
    files = [place / f"audio/{i}.wav" for i in (3, 1)]
    capsys.readouterr()
    assert main(["caption", place / "run2", *files, "--method", method]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == files


def test_evaluate_prints_a_table_and_writes_the_same_as_json(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "retrieval.json"
    assert main(["evaluate", "retrieval", place / "run2", "--data", place / "shards", "--json", str(out)]) == 0
    metrics = json.loads(out.read_text())
    printed = capsys.readouterr().out
    for direction in ("text_to_audio", "audio_to_text"):
        assert {"r@1", "r@5", "r@10", "map@10"} == set(metrics[direction])
        assert f"{100 * metrics[direction]['r@5']:.1f}" in printed
    assert list(tmp_path.iterdir()) == [out]


def test_doctor_says_what_runs_for_every_op(capsys: pytest.CaptureFixture[str]):
    assert doctor_command() == main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert torch.__version__ in said
    names = [choice.op for choice in backend.choices(torch.device("cpu"))]
    assert len(names) >= 12
    for name in names:
        assert f"  {name} " in said
    assert "linear layers on cpu:\n  reference: no fused implementation on cpu" in said
    assert f"\n{flac_decoder()}\n" in said
    for package in ("mteb", "wandb", "ray", "pyarrow", "faiss-cpu", "openai", "rouge-score"):
        assert f"\n{package} (extra " in said


def test_a_reader_that_has_enough_is_no_error():
    """As `cacophony train mae --help | head -1` closes the pipe while more is written."""
    command = [sys.executable, "-m", "cacophony", "train", "mae", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_help_names_positional_arguments(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    assert "cacophony embed [-h] RUN FILES ... --out PATH" in " ".join(capsys.readouterr().out.split())


def test_doctor_names_a_backend_that_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CACOPHONY_BACKEND", "fast")
    assert main(["doctor"]) == 2
    assert "CACOPHONY_BACKEND='fast'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "pack",
        "train mae",
        "train contrastive",
        "evaluate retrieval",
        "evaluate zero-shot",
        "evaluate caption",
        "evaluate all",
        "embed",
        "caption",
        "convert",
        "doctor",
    ],
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str):
    with pytest.raises(SystemExit) as exit_:
        main([*command.split(), "--help"])
    assert exit_.value.code == 0
    captured = capsys.readouterr()
    assert f"cacophony {command}" in captured.out
    assert captured.err == ""
    assert main(["--help"]) == main([]) == 0
    assert command in capsys.readouterr().out
