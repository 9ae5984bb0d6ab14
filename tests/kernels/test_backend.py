"""The backend: chosen by name, by context before environment, and never replaced silently."""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast, get_args

import pytest
import torch
from cacophony.errors import InputError
from cacophony.kernels import backend
from cacophony.kernels.backend import Backend, choices, choose, current_backend, register, use_backend, use_rival
from cacophony.kernels.layer_norm import layer_norm, layer_norm_reference
from torch import Tensor

CPU = torch.device("cpu")
OPS = [
    "activation",
    "attention",
    "attention_pool",
    "caption_loss",
    "choose_patches",
    "dropout",
    "info_nce",
    "layer_norm",
    "linear",
    "log_mel",
    "log_mel_patches",
    "mae_decoder_input",
    "mlp",
    "patch_embed",
    "patch_mask",
    "patch_mse",
]
for op_name in OPS:  # registers them, before a test replaces the registry
    importlib.import_module(f"cacophony.kernels.{op_name}")


def plain(x: Tensor) -> str:
    return "reference"


def fast(x: Tensor) -> str:
    return "fused"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops registered by a test are gone after it."""
    monkeypatch.setattr(backend, "_ops", dict(backend._ops))


@pytest.fixture
def both() -> Callable[..., Any]:
    return register("toy_both", reference=plain, fused={"cpu": fast})


@pytest.fixture
def only_reference() -> Callable[..., Any]:
    return register("toy_reference", reference=plain)


def test_auto_takes_the_fused_implementation_where_there_is_one(
    both: Callable[..., Any], only_reference: Callable[..., Any]
) -> None:
    assert both(torch.zeros(1)) == "fused"
    assert only_reference(torch.zeros(1)) == "reference"
    assert "no fused implementation on cpu" in choose("toy_reference", CPU).reason
    assert "cpu has a fused implementation" in choose("toy_both", CPU).reason


def test_the_device_of_the_first_argument_decides(both: Callable[..., Any]) -> None:
    assert both(torch.zeros(1, device="meta")) == "reference"


@pytest.mark.parametrize(("name", "expected"), [("reference", "reference"), ("fused", "fused"), ("auto", "fused")])
@pytest.mark.parametrize("how", ["context", "environment"])
def test_an_asked_backend_runs(
    both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, how: str, name: Backend, expected: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("CACOPHONY_BACKEND", name)
        assert both(torch.zeros(1)) == expected
    else:
        with use_backend(name):
            assert both(torch.zeros(1)) == expected


@pytest.mark.parametrize("how", ["context", "environment"])
def test_fused_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    calls: list[str] = []

    def reference(x: Tensor) -> None:
        calls.append("reference")

    op = register("toy_refused", reference=reference, fused={"xpu": fast})
    if how == "environment":
        monkeypatch.setenv("CACOPHONY_BACKEND", "fused")
        with pytest.raises(InputError, match=r"fused.*toy_refused on cpu"):
            op(torch.zeros(1))
    else:
        with use_backend("fused"), pytest.raises(InputError, match=r"fused.*toy_refused on cpu"):
            op(torch.zeros(1))
    assert not calls


def test_without_triton_kernels_of_it_are_not_chosen(both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    native = register("toy_native", reference=plain, fused={"cpu": fast}, needs_triton=False)
    monkeypatch.setattr(backend, "HAS_TRITON", False)
    assert both(torch.zeros(1)) == "reference"
    assert native(torch.zeros(1)) == "fused"
    assert "no Triton" in choose("toy_both", CPU).reason
    with use_backend("fused"), pytest.raises(InputError, match=r"no Triton.*toy_both on cpu"):
        both(torch.zeros(1))


def test_the_cuda_kernels_run_in_the_interpreter_and_give_shapes_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    op = register("toy_cuda", reference=plain, fused={"cuda": fast})
    monkeypatch.setattr(backend, "HAS_TRITON", True)
    monkeypatch.setattr(backend, "INTERPRETING", True)
    for device in ("cpu", "meta"):
        x = torch.zeros(1, device=device)
        assert op(x) == "reference"
        with use_backend("fused"):
            assert op(x) == "fused"
    monkeypatch.setattr(backend, "INTERPRETING", False)
    with use_backend("fused"), pytest.raises(InputError, match="toy_cuda on cpu"):
        op(torch.zeros(1))


def test_the_choice_holds_in_other_threads(both: Callable[..., Any]) -> None:
    """Autograd runs backward, and what it computes again, in threads of its own."""
    with use_backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(both, torch.zeros(1)).result() == "reference"


@pytest.mark.parametrize("how", ["context", "environment"])
def test_a_compiled_function_follows_the_backend(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    op = register("toy_compiled", reference=lambda x: x + 1, fused={"cpu": lambda x: x + 2})
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="eager")
    for asked, expected in (("fused", 2.0), ("reference", 1.0), ("fused", 2.0)):
        if how == "environment":
            monkeypatch.setenv("CACOPHONY_BACKEND", asked)
            assert compiled(torch.zeros(1)) == expected
        else:
            with use_backend(cast(Backend, asked)):
                assert compiled(torch.zeros(1)) == expected


def test_context_beats_environment_and_ends(both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACOPHONY_BACKEND", "reference")
    with use_backend("fused"):
        assert both(torch.zeros(1)) == "fused"
        with use_backend("reference"):
            assert both(torch.zeros(1)) == "reference"
        assert both(torch.zeros(1)) == "fused"
    assert both(torch.zeros(1)) == "reference"
    with pytest.raises(KeyError, match="body"), use_backend("fused"):
        raise KeyError("body")
    assert current_backend() == "reference"


def test_a_backend_can_be_asked_for_some_ops_only(
    both: Callable[..., Any], only_reference: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(1)
    with use_backend("reference"), use_backend("fused", ops=["toy_both"]):
        assert (both(x), only_reference(x), current_backend()) == ("fused", "reference", "reference")
        with use_backend("reference"):  # the inner one means all ops
            assert both(x) == "reference"
        assert both(x) == "fused"
    with (
        use_backend("fused", ops=["toy_reference"]),
        pytest.raises(InputError, match="no fused implementation of toy_reference on cpu"),
    ):
        only_reference(x)
    monkeypatch.setenv("CACOPHONY_BACKEND", "reference")
    with use_backend("fused", ops=["toy_both"]):
        assert both(x) == "fused"
    with pytest.raises(ValueError, match="'toy_none', expected some of"), use_backend("fused", ops=["toy_none"]):
        pass


def test_a_rival_runs_instead_of_either_implementation_and_only_in_the_body(both: Callable[..., Any]) -> None:
    x = torch.zeros(1)
    with use_rival("toy_both", lambda x: "rival"):
        for asked in get_args(Backend):
            with use_backend(asked):
                assert both(x) == "rival"
        assert choose("toy_both", CPU).path == "rival"
        with use_rival("toy_both", lambda x: "another"):
            assert both(x) == "another"
        assert both(x) == "rival"
    assert both(x) == "fused"
    with pytest.raises(ValueError, match=r"use_rival: name is 'toy_missing', expected one of .*layer_norm"):
        use_rival("toy_missing", plain).__enter__()


def test_wrong_words_are_named(monkeypatch: pytest.MonkeyPatch, only_reference: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"'fast'.*auto, fused or reference"), use_backend(cast(Backend, "fast")):
        pass
    monkeypatch.setenv("CACOPHONY_BACKEND", "Fused")
    with pytest.raises(InputError, match=r"CACOPHONY_BACKEND='Fused'.*auto, fused or reference"):
        only_reference(torch.zeros(1))
    with use_backend("reference"):  # what beats the variable does not read it
        assert only_reference(torch.zeros(1)) == "reference"


def test_an_empty_variable_is_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACOPHONY_BACKEND", "")
    assert current_backend() == "auto"


def test_an_op_is_registered_once(both: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="toy_both"):
        register("toy_both", reference=plain)
    assert both(torch.zeros(1)) == "fused"


def test_choices_list_every_op_with_its_reason(only_reference: Callable[..., Any]) -> None:
    listed = {choice.op: choice for choice in choices(CPU)}
    assert list(listed) == sorted(listed)
    assert {*OPS, "toy_reference"} <= set(listed)
    assert all(choice.reason and choice.implementation is not None for choice in listed.values())
    with use_backend("reference"):
        assert {choice.path for choice in choices(CPU)} == {"reference"}
    with use_backend("fused"):  # says what would be refused instead of raising
        refused = {choice.op: choice for choice in choices(CPU)}["toy_reference"]
    assert (refused.path, refused.implementation) == ("refused", None)
    assert "toy_reference" in refused.reason


def test_ops_run_their_reference_on_cpu_by_default() -> None:
    x, one, zero = torch.randn(3, 4), torch.ones(4), torch.zeros(4)
    assert choose("layer_norm", CPU).implementation is layer_norm_reference
    assert torch.equal(layer_norm(x, one, zero, 1e-5), layer_norm_reference(x, one, zero, 1e-5))
