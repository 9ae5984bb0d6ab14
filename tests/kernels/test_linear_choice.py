"""Who multiplies in linear layers: the table, what replaces it, and how it is said."""

from typing import get_args

import pytest
import torch
from cacophony.errors import InputError
from cacophony.kernels import linear_choice
from cacophony.kernels.backend import use_backend
from cacophony.kernels.linear import linear
from cacophony.kernels.linear_choice import (
    ENVIRONMENT_VARIABLE,
    TABLE,
    LinearStep,
    choose_linear,
    linear_provider_asked,
    linear_report,
    use_linear_provider,
)
from cacophony.kernels.linear_tiles import DeviceClass, ShapeClass, device_class, shape_class
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from torch import Tensor

META = torch.device("meta")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


def test_the_table_has_every_gpu_step_and_shape() -> None:
    assert set(TABLE) == set(get_args(DeviceClass))
    for steps in TABLE.values():
        assert set(steps) == set(get_args(LinearStep))
        assert all(set(shapes) == set(get_args(ShapeClass)) for shapes in steps.values())


def test_the_table_is_followed_by_gpu_step_and_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**TABLE["sm_80"]["activation"], "wide": "triton"}
    monkeypatch.setitem(TABLE["sm_80"], "activation", row)
    with record_launches(80):
        assert choose_linear("activation", META, 768, 3072, None) == "triton"
        assert choose_linear("activation", META, 768, 768, None) == "cublas"
        assert choose_linear("bias", META, 768, 3072, None) == "cublas"
    with record_launches(90):
        assert choose_linear("activation", META, 768, 3072, None) == "cublas"


def test_classes_of_gpus_and_shapes() -> None:
    found = []
    for architecture in (75, 80, 86, 90, 100):
        with record_launches(architecture):
            found.append(device_class(META))
    assert found == ["other", "sm_80", "other", "sm_90", "other"]
    assert device_class(torch.device("cpu")) == "other"
    shapes = (768, 3072), (768, 2304), (768, 1536), (768, 768), (768, 512), (3072, 768)
    assert [shape_class(*shape) for shape in shapes] == ["wide", "wide", "wide", "square", "square", "deep"]


def test_the_innermost_word_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "triton")
    assert choose_linear("bias", META, 768, 768, None) == "triton"
    with use_linear_provider("cublas"):
        assert choose_linear("bias", META, 768, 768, None) == "cublas"
        with use_linear_provider("auto"):
            assert linear_provider_asked() is None
        assert choose_linear("bias", META, 768, 768, "triton") == "triton"
    assert linear_provider_asked() == "triton"


def test_another_word_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "is unknown; expected auto, cublas or triton"
    with pytest.raises(InputError, match=f"linear provider 'cutlass' {expected}"), use_linear_provider("cutlass"):
        pass
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cutlass")
    with pytest.raises(InputError, match=f"{ENVIRONMENT_VARIABLE}='cutlass' {expected}"):
        linear_provider_asked()


def products(provider: str, x: Tensor, weight: Tensor, bias: Tensor) -> list[str]:
    """Our kernels that multiply in a forward and a backward pass whose forward asked for ``provider``."""
    with use_backend("fused"), record_launches() as launches:
        with use_linear_provider(provider):
            out = linear(x, weight, bias, "silu")
        out.backward(torch.empty_like(out))
    names = [launch.kernel.__name__ for launch in launches]
    return [name for name in names if name.startswith("linear")]


@needs_triton
def test_backward_is_by_who_was_asked_for_in_forward() -> None:
    x, weight, bias = (torch.empty(shape, device=META, requires_grad=True) for shape in ((9, 16), (48, 16), (48,)))
    assert products("triton", x, weight, bias) == ["linear_fwd_kernel", "linear_dgrad_kernel"]
    assert products("cublas", x, weight, bias) == []
    assert products("auto", x, weight, bias) == []


def test_a_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    linear_choice._say.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            choose_linear("residual", META, 3072, 768, None)
    assert caplog.messages == ["linear residual of 3072 terms in 768 columns on meta runs on cublas"]


@needs_triton
def test_the_report_says_step_by_step() -> None:
    assert "no fused implementation" in linear_report(torch.device("cpu"))[0]
    with use_backend("fused"):
        lines = linear_report(META)
        assert [line.split()[0] for line in lines] == list(get_args(LinearStep))
        assert lines[0].split(maxsplit=1)[1] == "wide cublas, square cublas, deep cublas"
        with use_linear_provider("triton"):
            assert linear_report(META) == ["triton, which was asked for"]
