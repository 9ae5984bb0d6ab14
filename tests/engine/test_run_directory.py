"""What a run directory holds, and when it may be written or continued."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.engine.run_directory import (
    RunRecord,
    check_new,
    check_resumable,
    is_run,
    read_record,
    write_record,
)
from cacophony.errors import InputError

PICKLE_OR_ZIP = (b"\x80", b"PK")


def record_of(config: MaeRunConfig, init: str | None = None) -> RunRecord:
    return RunRecord("mae", config, "shards", "0123", init)


def test_a_finished_run_holds_what_its_documentation_names(contrastive_run: Path):
    assert {path.name for path in contrastive_run.iterdir()} == {
        ".lock",
        "run.json",
        "initialisation.json",
        "log.jsonl",
        "tensorboard",
        "loss.png",
        "throughput.png",
        "checkpoints",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
    }
    assert [path.name for path in sorted((contrastive_run / "checkpoints").iterdir())] == [
        "step-00000004",
        "step-00000006",
    ]


@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_nothing_that_a_run_writes_is_a_pickle(request: pytest.FixtureRequest, stage: str):
    run: Path = request.getfixturevalue(f"{stage}_run")
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) >= 10
    for path in files:
        head = path.read_bytes()[:16]
        assert not head.startswith(PICKLE_OR_ZIP), path
        if path.suffix in (".json", ".jsonl"):
            for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                json.loads(text)
        elif path.suffix == ".safetensors":
            assert head[8:9] == b"{"
            assert int.from_bytes(head[:8], "little") < path.stat().st_size
        else:
            assert path.suffix == ".png" or path.name.startswith(("events.out.tfevents", ".lock")), path


def test_a_record_comes_back(tmp_path: Path, mae_config: MaeRunConfig):
    for init in (None, "runs/stage1"):
        write_record(tmp_path / "run", record_of(mae_config, init))
        assert is_run(tmp_path / "run")
        assert read_record(tmp_path / "run") == record_of(mae_config, init)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_the_record_of_a_run_says_where_it_came_from(contrastive_run: Path, mae_run: Path, shards: Path):
    record = read_record(contrastive_run)
    assert (record.stage, record.data, record.init) == ("contrastive", str(shards), str(mae_run))
    assert record.data_fingerprint == json.loads((shards / "index.json").read_text())["fingerprint"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "JSON"),
        (b"{}", "stage is None, expected mae or contrastive"),
        (b'{"stage": "mae", "config": {"batch_sizes": 3}}', "batch_sizes is unknown; did you mean batch_size"),
        (b'{"stage": "mae"}', "config"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"run\.json.*{message}"):
        read_record(tmp_path)


def test_what_is_no_run_directory_is_refused(tmp_path: Path):
    assert not is_run(tmp_path)
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="not a run directory"):
            read_record(path)


def test_a_new_run_needs_an_empty_place(tmp_path: Path):
    check_new(tmp_path / "absent")
    check_new(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"not empty.*--resume"):
        check_new(tmp_path)
    with pytest.raises(InputError, match=r"is a file; expected a directory"):
        check_new(tmp_path / "file")


def test_only_fields_that_cannot_change_the_result_may_differ(tmp_path: Path, mae_config: MaeRunConfig):
    harmless = replace(
        mae_config,
        data=replace(mae_config.data, workers=7, prefetch_batches=9, loader="dali", max_bad_share=0.5),
        device="cuda",
        log_every_steps=5,
        save_every_steps=50,
        keep_checkpoints=9,
    )
    check_resumable(tmp_path, record_of(mae_config), "mae", harmless, None)
    for name, changed in {
        "batch_size": replace(mae_config, batch_size=16),
        "micro_batch_size": replace(mae_config, micro_batch_size=8),
        "steps": replace(mae_config, steps=60),
        "seed": replace(mae_config, seed=1),
        "precision": replace(mae_config, precision="bf16"),
        "layout": replace(mae_config, layout="padded"),
        "update.learning_rate": replace(mae_config, update=replace(mae_config.update, learning_rate=1.0)),
        "objective.mask_ratio": replace(mae_config, objective=replace(mae_config.objective, mask_ratio=0.5)),
        "data.crop_seconds": replace(mae_config, data=replace(mae_config.data, crop_seconds=2.0)),
        "data.frontend": replace(mae_config, data=replace(mae_config.data, frontend="dali")),
    }.items():
        with pytest.raises(InputError, match=f"was started with {name} = "):
            check_resumable(tmp_path, record_of(mae_config), "mae", changed, None)


def test_a_run_cannot_be_continued_as_the_other_stage(
    tmp_path: Path, mae_config: MaeRunConfig, contrastive_config: ContrastiveRunConfig
):
    with pytest.raises(InputError, match="is a mae run; it cannot be continued as contrastive"):
        check_resumable(tmp_path, record_of(mae_config), "contrastive", contrastive_config, None)
