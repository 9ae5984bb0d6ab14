"""Shared by the engine's tests: a corpus packed once, tiny configurations, a finished run a stage, other processes."""

import json
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from cacophony.__main__ import main
from cacophony.data.pack import pack
from cacophony.data.synthetic import Corpus, make_corpus
from cacophony.engine.config import (
    ContrastiveDataConfig,
    ContrastiveObjectiveConfig,
    ContrastiveRunConfig,
    MaeDataConfig,
    MaeRunConfig,
    Stage,
)
from cacophony.engine.trainer import train
from cacophony.engine.update_config import UpdateConfig
from cacophony.models.config import AudioMAEConfig, AudioTextConfig, TextConfig, TransformerConfig
from cacophony.models.config_io import to_dict


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), train_clips=40, test_clips=8)


@pytest.fixture(scope="session")
def shards(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clips with captions, some of them synthetic."""
    out = tmp_path_factory.mktemp("packed") / "train"
    pack(corpus.train_dir, out, captions=corpus.train_captions, progress=False)
    return out


@pytest.fixture(scope="session")
def held_out_shards(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 clips with one caption each."""
    out = tmp_path_factory.mktemp("packed") / "test"
    pack(corpus.test_dir, out, captions=corpus.test_captions, progress=False)
    return out


@pytest.fixture(scope="session")
def mute_shards(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 clips without captions."""
    out = tmp_path_factory.mktemp("packed") / "mute"
    pack(corpus.test_dir, out, progress=False)
    return out


@pytest.fixture(scope="session")
def mae_config() -> MaeRunConfig:
    """A stage 1 of some milliseconds a step, six steps, a checkpoint every two."""
    return MaeRunConfig(
        model=AudioMAEConfig(
            encoder=TransformerConfig(width=16, layers=1, heads=2, mlp_width=32),
            decoder=TransformerConfig(width=16, layers=1, heads=2, mlp_width=32),
        ),
        data=MaeDataConfig(crop_seconds=1.0, workers=2),
        batch_size=8,
        micro_batch_size=3,
        steps=6,
        device="cpu",
        update=UpdateConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=2),
        log_every_steps=1,
        save_every_steps=2,
    )


@pytest.fixture(scope="session")
def contrastive_config(mae_config: MaeRunConfig) -> ContrastiveRunConfig:
    """A stage 2 with everything that draws random numbers: SAM, dropout, synthetic captions, subsets of patches."""
    text = TextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=300, max_positions=40, dropout=0.1)
    return ContrastiveRunConfig(
        model=AudioTextConfig(
            audio=mae_config.model.encoder, text=text, caption_layers=1, pool_heads=2, projection_width=16
        ),
        data=ContrastiveDataConfig(tokenizer="train", max_text_tokens=24, synthetic_probability=0.8, workers=2),
        objective=ContrastiveObjectiveConfig(max_patches=64),
        batch_size=8,
        micro_batch_size=3,
        steps=6,
        device="cpu",
        update=UpdateConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=2, rho=0.05),
        log_every_steps=1,
        save_every_steps=2,
    )


@pytest.fixture(scope="session")
def mae_run(mae_config: MaeRunConfig, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished, uninterrupted run of `mae_config`."""
    out = tmp_path_factory.mktemp("runs") / "mae"
    assert train("mae", mae_config, shards, out).steps == mae_config.steps
    return out


@pytest.fixture(scope="session")
def contrastive_run(
    contrastive_config: ContrastiveRunConfig, mae_run: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The finished, uninterrupted run of `contrastive_config`, started from `mae_run`."""
    out = tmp_path_factory.mktemp("runs") / "contrastive"
    assert train("contrastive", contrastive_config, shards, out, init=mae_run).steps == contrastive_config.steps
    return out


@pytest.fixture(scope="session")
def save_toml(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Write a configuration as a TOML file for --config; returns its path."""

    def lines(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from lines(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name} = {json.dumps(value)}"  # JSON's scalars are TOML's

    def save(config: Any) -> Path:
        path = tmp_path_factory.mktemp("toml") / "run.toml"
        path.write_text("\n".join(lines(to_dict(config))), encoding="utf-8")
        return path

    return save


@pytest.fixture(scope="session")
def command(
    mae_config: MaeRunConfig,
    contrastive_config: ContrastiveRunConfig,
    shards: Path,
    mae_run: Path,
    save_toml: Callable[[Any], Path],
) -> Callable[..., list[str]]:
    """The command line of a stage's run, as the uninterrupted run of conftest was made."""
    files = {"mae": save_toml(mae_config), "contrastive": save_toml(contrastive_config)}

    def words(stage: Stage, out: Path, *flags: str) -> list[str]:
        init = ["--init", str(mae_run)] if stage == "contrastive" else []
        named = ["--data", str(shards), "--out", str(out), "--preset", "demo", "--config", str(files[stage])]
        return ["train", stage, *named, *init, *flags]

    return words


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run a command that must exit with 2, printing one line on stderr and nothing else; returns the line."""

    def run(argv: list[str]) -> str:
        capsys.readouterr()
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == 1, captured.err
        assert captured.err.startswith("cacophony: ")
        assert captured.out == ""
        return captured.err

    return run


@pytest.fixture(scope="session")
def start_python() -> Callable[[str], BaseProcess]:
    """Run Python source in another process, its exit code the source's; forked from one that has the imports done."""
    context = multiprocessing.get_context("forkserver")
    # The optimiser would import torch._dynamo, in seconds, at the first step of every process.
    context.set_forkserver_preload(["cacophony.__main__", "torch._dynamo"])

    def start(source: str) -> BaseProcess:
        process = context.Process(target=exec, args=(source, {"__name__": "child"}))
        process.start()
        return process

    return start


# A rank of a run as torchrun would start it, without pictures: most of the time of so short a run.
_RANK = """
import os, sys
os.environ.update(RANK="{rank}", LOCAL_RANK="{rank}", WORLD_SIZE="{size}")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(log, 1)
os.dup2(log, 2)
import cacophony.engine.telemetry as telemetry
telemetry.loss_curves = telemetry.throughput_curves = lambda *args: None
{before}
from cacophony.__main__ import main
sys.exit(main({argv!r}))
"""


@dataclass(frozen=True)
class Rank:
    """A process of a run on several ranks."""

    process: BaseProcess
    log: Path

    def ended(self) -> tuple[int | None, str]:
        """Wait for its end; returns its exit code and its output."""
        self.process.join(120)
        self.process.kill()
        return self.process.exitcode, self.log.read_text(encoding="utf-8")


StartRanks = Callable[..., list[Rank]]


@pytest.fixture(scope="session")
def start_ranks(start_python: Callable[[str], BaseProcess], tmp_path_factory: pytest.TempPathFactory) -> StartRanks:
    """Start a command on so many ranks; `before` is Python that each runs first, `more` are flags of the last rank."""

    def start(argv: list[str], size: int = 2, before: str = "", more: list[str] | None = None) -> list[Rank]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        logs = tmp_path_factory.mktemp("ranks")
        ranks = []
        for rank in range(size):
            log, words = logs / f"{rank}", [*argv, *((more or []) if rank == size - 1 else [])]
            source = _RANK.format(rank=rank, size=size, port=port, log=str(log), before=before, argv=words)
            ranks.append(Rank(start_python(source), log))
        return ranks

    return start
