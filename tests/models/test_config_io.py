from pathlib import Path
from typing import Any

import pytest
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.engine.presets import demo_stage1, demo_stage2
from cacophony.engine.update_config import UpdateConfig
from cacophony.errors import InputError
from cacophony.models.config_io import difference, from_dict, merge, read_toml, to_dict
from hypothesis import given
from hypothesis import strategies as st


def read(data: Any) -> MaeRunConfig:
    return from_dict(MaeRunConfig, data, "run.toml")


@given(
    st.floats(1e-9, 1.0),
    st.integers(1, 1000),
    st.integers(0, 2**63 - 1),
    st.sampled_from(["fp32", "bf16"]),
    st.floats(0, 10),
)
def test_a_field_set_in_a_dictionary_is_the_field_of_the_configuration(
    rate: float, batch: int, seed: int, precision: str, rho: float
):
    changes = {
        "batch_size": batch,
        "seed": seed,
        "precision": precision,
        "update": {"learning_rate": rate, "final_learning_rate": 0, "rho": rho},
    }
    config = merge(demo_stage1(), changes, "here")
    assert (config.batch_size, config.seed, config.precision) == (batch, seed, precision)
    assert (config.update.learning_rate, config.update.final_learning_rate, config.update.rho) == (rate, 0.0, rho)
    assert isinstance(config.update.final_learning_rate, float)
    touched = {"batch_size", "seed", "precision", *(f"update.{name}" for name in changes["update"])}
    assert set(difference(demo_stage1(), config)) <= touched


def test_a_list_of_names_is_a_tuple_in_the_configuration_and_a_list_in_json():
    config = merge(demo_stage2(), {"data": {"sources": ["clean", "cleaned"]}}, "here")
    assert config.data.sources == ("clean", "cleaned")
    assert to_dict(config)["data"]["sources"] == ["clean", "cleaned"]
    assert from_dict(ContrastiveRunConfig, to_dict(config), "here") == config
    for wrong, said in (("clean", "data.sources is 'clean', expected a list"), ([3], "is 3, expected str")):
        with pytest.raises(InputError, match=said):
            merge(demo_stage2(), {"data": {"sources": wrong}}, "here")


def test_absent_fields_keep_their_defaults():
    assert read({}) == MaeRunConfig()
    assert read({"update": {"rho": 0.5}}) == MaeRunConfig(update=UpdateConfig(rho=0.5))


@pytest.mark.parametrize(
    ("data", "typed", "meant"),
    [
        ({"bach_size": 3}, "bach_size", "batch_size"),
        ({"update": {"leaning_rate": 3.0}}, "update.leaning_rate", "update.learning_rate"),
        ({"model": {"encoder": {"withd": 3}}}, "model.encoder.withd", "model.encoder.width"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(data: dict[str, Any], typed: str, meant: str):
    with pytest.raises(InputError, match=f"run.toml: field {typed} is unknown; did you mean {meant}\\?"):
        read(data)


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        ({"batch_size": 1.0}, "batch_size", "int"),
        ({"batch_size": True}, "batch_size", "int"),
        ({"batch_size": None}, "batch_size", "int"),
        ({"update": {"rho": "big"}}, "update.rho", "float"),
        ({"update": {"rho": False}}, "update.rho", "float"),
        ({"update": 3}, "update", "table"),
        ({"device": 0}, "device", "str"),
        ({"precision": "fp16"}, "precision", "fp32, bf16"),
        ({"precision": ["fp32"]}, "precision", "fp32, bf16"),
        ({"objective": {"unbiased_variance": 1}}, "objective.unbiased_variance", "bool"),
        ([], "file", "table"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_type_expected(data: Any, name: str, expected: str):
    with pytest.raises(InputError, match=f"run.toml: .*{name}.*expected.*{expected}"):
        read(data)


@pytest.mark.parametrize("stash", [5, False, True, "10"])
def test_a_choice_of_numbers_takes_only_these(stash: Any):
    with pytest.raises(InputError, match=r"objective\.stash.*0, 1, 2, 3, 6, 10"):
        from_dict(ContrastiveRunConfig, {"objective": {"stash": stash}}, "here")


def test_a_value_outside_its_range_names_the_file():
    with pytest.raises(InputError, match=r"run\.toml: update\.rho is -1\.0; expected at least 0"):
        read({"update": {"rho": -1}})


def test_a_toml_file_replaces_what_it_names_and_nothing_else(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('steps = 77\ndata.tokenizer = "auto"\n[update]\nrho = 0\n[model.text]\ndropout = 0.25\n')
    changed = merge(demo_stage2(), read_toml(path), str(path))
    assert difference(demo_stage2(), changed) == {
        "steps": (demo_stage2().steps, 77),
        "data.tokenizer": ("train", "auto"),
        "update.rho": (demo_stage2().update.rho, 0.0),
        "model.text.dropout": (0.0, 0.25),
    }
    assert merge(demo_stage2(), to_dict(changed), "all of it") == changed


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", b"steps = 1\nsteps = 2\n", None])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.toml.*TOML"):
        read_toml(path)


def test_the_difference_of_equal_configurations_is_empty():
    assert difference(demo_stage2(), demo_stage2()) == {}
