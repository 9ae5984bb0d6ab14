"""Who computes attention: the order, refusals and overrides; calls of libraries, played by fakes on the CPU."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from cacophony.errors import InputError
from cacophony.kernels.attention import attention
from cacophony.kernels.attention_providers import choice, flash2
from cacophony.kernels.attention_providers.choice import PROVIDERS, choose, choose_provider, report, use_provider
from cacophony.kernels.attention_providers.provider import Problem, Provider, Sequences
from cacophony.kernels.attention_providers.torch_flash import deterministic
from cacophony.kernels.attention_reference import attention_reference
from cacophony.kernels.backend import use_backend
from cacophony.kernels.dropout import DropoutKey
from cacophony.kernels.layout import Packed
from cacophony.kernels.triton_runtime import INTERPRETING
from torch import Tensor

from .played_attention import PLAYS, module

A100, H100 = (8, 0), (9, 0)
EVERY = frozenset(PROVIDERS)


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choices are made once; here what is installed changes."""
    monkeypatch.delenv("CACOPHONY_ATTENTION", raising=False)
    choose.cache_clear()
    yield
    choose.cache_clear()


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def problem(
    head_dim: int,
    capability: tuple[int, int] = H100,
    dtype: torch.dtype = torch.bfloat16,
    *,
    dropout: bool = False,
    device_type: str = "cuda",
) -> Problem:
    return Problem(device_type, capability, dtype, head_dim, causal=False, dropout=dropout)


def install(monkeypatch: pytest.MonkeyPatch, names: frozenset[str]) -> None:
    for name, provider in PROVIDERS.items():
        reason = None if name in names else "is not installed"
        monkeypatch.setattr(provider, "unavailable", lambda reason=reason: reason)


@pytest.mark.parametrize(
    ("installed", "asked", "expected"),
    [
        (EVERY, problem(96), "flash3"),
        (EVERY, problem(64), "flash3"),
        (EVERY, problem(96, A100), "flash2"),
        (EVERY - {"flash3"}, problem(64), "flash2"),
        (EVERY - {"flash3", "flash2"}, problem(96), "torch"),
        (EVERY - {"flash3", "flash2", "torch"}, problem(96), "xformers"),
        (EVERY - {"flash3", "flash2", "torch"}, problem(64), "triton"),
        (frozenset({"triton"}), problem(96), "triton"),
        (EVERY, problem(64, dropout=True), "triton"),
        (EVERY, problem(96, dtype=torch.float32), "triton"),
        (EVERY, problem(256), "flash2"),
        (EVERY, problem(100), "triton"),
        (EVERY, problem(64, (7, 5)), "reference"),
        (EVERY, problem(96, dtype=torch.float64), "reference"),
        (EVERY, problem(264), "reference"),
        (EVERY - {"triton"}, problem(64, dropout=True), "reference"),
        (EVERY, problem(64, (0, 0), device_type="xpu"), "reference"),
        (EVERY, problem(64, (0, 0), device_type="meta"), "triton"),
    ],
)
def test_order(monkeypatch: pytest.MonkeyPatch, installed: frozenset[str], asked: Problem, expected: str) -> None:
    install(monkeypatch, installed)
    found = choose(asked, None)
    assert found.provider == expected
    before = choice.ORDER.get(asked.head_dim, choice.ANY_HEAD_DIM)
    assert [refusal.partition(":")[0] for refusal in found.refusals] == [
        *before[: before.index(expected) if expected in before else len(before)]
    ]


def test_the_reference_is_taken_aloud(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    install(monkeypatch, frozenset())
    choose(problem(96), None)
    choose(problem(96), None)
    (record,) = caplog.records
    assert "runs in plain PyTorch: flash3: it is not installed; flash2: it is not" in record.getMessage()


def test_asking_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, EVERY - {"flash2"})
    assert choose(problem(96), "torch").provider == "torch"
    assert choose(problem(96), "reference").provider == "reference"
    with pytest.raises(
        InputError,
        match=r"provider flash2 cannot serve head dim 96, bfloat16, cuda: it is not installed; take another, or auto",
    ):
        choose(problem(96), "flash2")
    with pytest.raises(
        InputError, match=r"torch cannot serve head dim 96, float32, .*: it takes float16 and bfloat16, not"
    ):
        choose(problem(96, dtype=torch.float32), "torch")
    with pytest.raises(InputError, match=r"flash3 cannot serve .*, dropout: it draws a mask of its own"):
        choose(problem(64, dropout=True), "flash3")


def test_use_provider_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.provider_asked() is None
    monkeypatch.setenv("CACOPHONY_ATTENTION", "flash2")
    assert choice.provider_asked() == "flash2"
    with use_provider("torch"):
        assert choice.provider_asked() == "torch"
        with use_provider("auto"):
            assert choice.provider_asked() is None
        assert choice.provider_asked() == "torch"
    assert choice.provider_asked() == "flash2"


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "is unknown; expected auto, flash3, flash2, torch, triton, xformers or reference"
    with pytest.raises(InputError, match=f"'cudnn' {expected}"), use_provider("cudnn"):
        pass
    monkeypatch.setenv("CACOPHONY_ATTENTION", "flash")
    with pytest.raises(InputError, match=f"CACOPHONY_ATTENTION='flash' {expected}"):
        choice.provider_asked()


def test_insisting_names_everyones_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, frozenset())
    arguments = torch.device("meta"), torch.bfloat16, 96, False, False
    assert choose_provider(*arguments, insist=False) == "reference"
    with pytest.raises(
        ValueError, match=r"head dim 96, bfloat16, meta.*flash3: it needs CUDA.*triton: it is not installed"
    ):
        choose_provider(*arguments, insist=True)
    with use_provider("reference"):
        assert choose_provider(*arguments, insist=True) == "reference"


@pytest.mark.skipif(not INTERPRETING, reason="runs the fused path on a CPU")
def test_report(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert report(cpu) == ["reference: no fused implementation on cpu"]
    with use_backend("fused"):
        lines = report(cpu)
        assert [line for line in lines if not line.startswith(" ")] == [
            "audio, head dim 96: triton",
            "text, head dim 64: triton",
            "text with dropout, head dim 64: triton",
            "padded tokens: reference",
        ]
        assert "  not flash2: it needs CUDA, not cpu" in lines
        with use_provider("flash2"):
            assert report(cpu)[:2] == [
                "audio, head dim 96: refused",
                "  attention provider flash2 cannot serve head dim 96, bfloat16, cpu: it needs CUDA, not cpu; "
                "take another, or auto for the first that can",
            ]


def test_a_stub_of_flash_attn_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Built without CUDA the package is there, and its import fails."""
    folder = tmp_path_factory.mktemp("stub")
    (folder / "flash_attn").mkdir()
    (folder / "flash_attn" / "__init__.py").write_text("import flash_attn_2_cuda_that_is_not_there\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    assert PROVIDERS["flash2"].unavailable() == (
        "cannot be imported (flash_attn): ModuleNotFoundError: No module named 'flash_attn_2_cuda_that_is_not_there'"
    )


def test_flash_attention_4_alone_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shares the package's name."""
    module(monkeypatch, "flash_attn")
    monkeypatch.delitem(sys.modules, "flash_attn.flash_attn_interface", raising=False)
    assert "No module named 'flash_attn.flash_attn_interface'" in str(PROVIDERS["flash2"].unavailable())


@pytest.mark.parametrize(("version", "served"), [("2.8.3", True), ("2.10.0", True), ("2.6.3", False), (None, False)])
def test_versions_of_flash_attention_2(monkeypatch: pytest.MonkeyPatch, version: str | None, served: bool) -> None:
    module(monkeypatch, "flash_attn", **({"__version__": version} if version else {}))
    module(monkeypatch, "flash_attn.flash_attn_interface")
    reason = PROVIDERS["flash2"].unavailable()
    assert (reason is None) == served
    assert served or "expected 2.7 or a newer 2" in str(reason)


@pytest.mark.parametrize("error", [ImportError("needs flash_attn 2.7\nto 2.8"), AttributeError("no fwd"), OSError()])
def test_whatever_an_import_raises_is_a_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As ``xformers.ops`` does beside a stub of ``flash_attn``."""

    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    for name in ("flash3", "flash2", "xformers"):
        reason = PROVIDERS[name].unavailable()
        assert reason is not None
        assert type(error).__name__ in reason
        assert "\n" not in reason


@pytest.fixture
def played(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider whose library is played on the CPU."""
    provider = PROVIDERS[request.param]
    PLAYS[request.param](monkeypatch)
    assert provider.unavailable() is None
    monkeypatch.setattr(provider, "refusal", lambda problem: None)
    yield provider
    for name in ("flash_attn_3._C", "keeps_the_library_alive"):
        if library := getattr(sys.modules.get(name), "library", None):
            library._destroy()


@pytest.mark.parametrize("played", PLAYS, indirect=True)
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_libraries_are_called_as_they_are_declared(played: Provider, kind: str) -> None:
    """Arguments, their order, and gradients written into parts of one tensor."""
    queries = Packed.from_lengths([5, 0, 9])
    keys = Packed.from_lengths([3, 40, 1]) if kind == "cross" else queries
    heads, width = 2, 8
    query, d_out = torch.randn(2, queries.total, heads, width, dtype=torch.float64).unbind()
    key, value = torch.randn(keys.total, 2, heads, width, dtype=torch.float64).unbind(1)
    causal = kind == "causal"
    sequences = Sequences(queries.cu_seqlens, keys.cu_seqlens, 9, keys.max_len, causal, 0.0, (0, 0, 0))
    out, lse = played.forward(query, key, value, sequences)
    assert lse.shape == (heads, queries.total)
    d_query, d_kv = torch.empty_like(query), torch.full((keys.total, 2, heads, width), torch.nan, dtype=torch.float64)
    d_key, d_value = d_kv.unbind(1)
    played.backward(d_out, query, key, value, out, lse, sequences, (d_query, d_key, d_value))

    leaves = leaf(query), leaf(key), leaf(value)
    expected = attention_reference(*leaves, queries, keys, causal=causal, dropout=None)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=0)
    for found, exact in zip((d_query, d_key, d_value), torch.autograd.grad(expected, leaves, d_out), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not INTERPRETING, reason="runs the fused path on a CPU")
@pytest.mark.parametrize("played", PLAYS, indirect=True)
def test_attention_goes_through_the_library_asked_for(played: Provider) -> None:
    """Forward and backward, though the asking has ended when backward runs."""
    layout = Packed.from_lengths([5, 0, 9])
    query, key, value = torch.randn(3, layout.total, 2, 8, dtype=torch.float64).unbind()
    inputs = leaf(query), leaf(key), leaf(value)
    with use_backend("fused"), use_provider(played.name):
        found = attention(*inputs, layout, layout, causal=True)
        empty = Packed.from_lengths([0, 0, 0])
        assert attention(*inputs, layout, layout, dropout=DropoutKey(0.0, 0, 0, torch.arange(3))).shape == found.shape
        assert attention(query[:0], key[:0], value[:0], empty, empty).shape == (0, 2, 8)
    gradients = torch.autograd.grad(found.sum(), inputs)
    expected = attention(*inputs, layout, layout, causal=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for one, other in zip(gradients, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_torch_ops_take_these_arguments() -> None:
    """Through PyTorch's own shape functions of the ops."""
    layout = Packed.from_lengths([5, 9])
    query = torch.empty(14, 2, 96, dtype=torch.bfloat16, device="meta")
    offsets = layout.cu_seqlens.to("meta")
    sequences = Sequences(offsets, offsets, 9, 9, True, 0.0, (0, 0, 0))
    out, lse = PROVIDERS["torch"].forward(query, query, query, sequences)
    assert (out.shape, lse.shape, lse.dtype) == (query.shape, (2, 14), torch.float32)
    gradients = torch.empty_like(query), torch.empty_like(query), torch.empty_like(query)
    PROVIDERS["torch"].backward(out, query, query, query, out, lse, sequences, gradients)


def test_deterministic_mode_is_given_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch._C._get_deterministic_fill_uninitialized_memory()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch._C._get_deterministic_fill_uninitialized_memory()


def test_a_library_that_went_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash2, "import_guarded", lambda name: "import flash_attn: gone")
    with pytest.raises(RuntimeError, match="flash2: import flash_attn: gone"):
        flash2._interface()
