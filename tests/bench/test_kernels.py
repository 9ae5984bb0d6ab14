"""The kernel bench: right first, then timed; who is refused a time is told why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench import providers
from cacophony.bench.harness import Pass
from cacophony.bench.kernels import CUT, KernelSettings, Row, bench_kernels, planned
from cacophony.bench.roofline import Roofs
from cacophony.kernels.accuracy import Truth
from cacophony.kernels.layer_norm import ADD_SPEC, SPEC, layer_norm_reference
from cacophony.kernels.log_mel import SPEC as LOG_MEL
from cacophony.kernels.native import native_library
from cacophony.kernels.spec import Inputs, Spec
from cacophony.kernels.specs import SPECS
from cacophony.kernels.triton_runtime import HAS_TRITON
from torch import Tensor

ODD = KernelSettings(ops=["layer_norm"], cases=["odd"], dtypes=["float32"], rounds=1, seconds=1e-4)


def rows(implementation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, Row]:
    """The rows of ``implementation``, called "ours", and of the reference, by provider."""
    monkeypatch.setitem(providers.OURS, "ours", lambda spec: implementation)
    chosen = KernelSettings(**{**vars(ODD), "providers": ["ours", "reference"], **settings})
    return {row.provider: row for row in bench_kernels(chosen)}


def off_by_a_little(x: Tensor, **rest: Any) -> Tensor:
    return layer_norm_reference(x, **rest) * (1 + 1e-4)


def gradient_of_bias_missing(bias: Tensor, **rest: Any) -> Tensor:
    return layer_norm_reference(bias=bias.detach(), **rest)


def one_element_unwritten(x: Tensor, **rest: Any) -> Tensor:
    out = layer_norm_reference(x, **rest).clone()
    out[..., -1] = float("nan")
    return out


def of_another_shape(x: Tensor, **rest: Any) -> Tensor:
    return layer_norm_reference(x, **rest)[0]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (off_by_a_little, "error of output"),
        (gradient_of_bias_missing, "error of d bias"),
        (one_element_unwritten, "error of output is nan"),
        (of_another_shape, "error of output is inf"),
    ],
)
def test_a_wrong_result_gets_no_time(wrong: Callable[..., Any], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(wrong, monkeypatch)
    assert not found["ours"].passes
    assert found["ours"].reason is not None
    assert found["ours"].reason.startswith("wrong on odd: ")
    assert expected in found["ours"].reason
    assert list(found["reference"].passes) == ["forward", "backward", "both"]
    assert found["reference"].reason is None
    assert found["reference"].checked_on == "odd"


def not_installed(**_: Any) -> Any:
    import cacophony_rival_that_is_not_there  # type: ignore[import-not-found]  # noqa: F401


def out_of_memory(**_: Any) -> Any:
    raise torch.OutOfMemoryError("Tried to allocate 2 GiB. Much advice follows.")


def broken(**_: Any) -> Any:
    raise ValueError("no such width\nand more lines")


@pytest.mark.parametrize(
    ("failing", "reason"),
    [
        (not_installed, "not installed (No module named 'cacophony_rival_that_is_not_there')"),
        (out_of_memory, "out of memory while its result was checked"),
        (broken, "ValueError: no such width"),
    ],
)
def test_one_that_fails_has_a_reason_and_the_rest_a_time(
    failing: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rows(failing, monkeypatch)
    assert found["ours"].reason == reason
    assert not found["ours"].passes
    assert found["reference"].passes


def test_one_that_fails_only_when_timed_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails_later(**inputs: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("tired")
        return layer_norm_reference(**inputs)

    found = rows(fails_later, monkeypatch)
    assert found["ours"].reason == "forward: RuntimeError: tired"
    assert list(found["reference"].passes) == ["forward", "backward", "both"]


def test_where_the_truth_does_not_fit_the_small_cases_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def little_room(spec: Spec, inputs: Inputs, dtype: torch.dtype) -> Truth:
        asked.append(inputs)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB.")
        return Truth(spec, dtype, {}, {})

    monkeypatch.setattr(Truth, "of", little_room)
    found = rows(layer_norm_reference, monkeypatch)
    small = [case.name for case in SPEC.cases if not case.paper]
    assert found["ours"].checked_on == ", ".join(small)
    assert found["ours"].passes


def test_a_case_that_cannot_be_made_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: Spec, inputs: Inputs, dtype: torch.dtype) -> Truth:
        raise ValueError("the reference is broken")

    monkeypatch.setattr(Truth, "of", fails)
    found = list(bench_kernels(KernelSettings(**{**vars(ODD), "cases": ["odd", "one row"]})))
    assert [(row.case, row.provider, row.reason) for row in found] == [
        (case, "all", "ValueError: the reference is broken") for case in ("odd", "one row")
    ]


def test_rates_are_of_compulsory_work_and_the_share_is_of_the_roof() -> None:
    roofs = Roofs(copy_gb_per_s=100.0, matmul_tflop_per_s={"float32": 1.0})
    settings = KernelSettings(**{**vars(ODD), "providers": ["reference"]})
    (row,) = bench_kernels(settings, roofs)
    nbytes = 3 * 5 * 96 * 4
    moved_by_pass: dict[Pass, int] = {"forward": 2 * nbytes, "backward": 3 * nbytes, "both": 5 * nbytes}
    for name, moved in moved_by_pass.items():
        figures = row.passes[name]
        assert figures.gb_per_s == pytest.approx(moved / figures.timing.ms_p50 / 1e6)
        assert figures.roof_share == pytest.approx(figures.gb_per_s / 100.0)
        assert figures.tflop_per_s == 0.0


def test_what_starts_after_the_time_is_cut_and_says_so() -> None:
    found = list(bench_kernels(KernelSettings(part_seconds=0.0)))
    assert len(found) == len(planned(KernelSettings()))
    assert {row.reason for row in found} == {CUT}


def test_the_first_case_of_every_op_comes_first_and_a_gpu_gets_the_papers_shapes() -> None:
    names = [spec.name for spec, _, _ in planned(KernelSettings())]
    assert names[: len(SPECS)] == [spec.name for spec in SPECS]
    assert not any(case.paper for _, case, _ in planned(KernelSettings()))
    assert all(case.paper for _, case, _ in planned(KernelSettings(device="cuda")))
    done = [("layer_norm", "odd", "bfloat16")]
    assert len(planned(KernelSettings(skip=done))) == len(planned(KernelSettings())) - 1


@pytest.mark.parametrize("name", ["fused", "cublas", "triton"])
def test_the_fused_op_is_not_timed_in_the_interpreter_unless_asked_for(name: str) -> None:
    assert name not in providers.default_providers(SPEC, torch.device("cpu"))
    assert name in providers.default_providers(SPEC, torch.device("cuda"))


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_variants_of_an_op_are_providers_of_it() -> None:
    settings = {**vars(ODD), "ops": ["layer_norm", "linear", "mlp"], "providers": ["cublas", "triton"]}
    found = list(bench_kernels(KernelSettings(**settings)))
    assert all(row.passes.keys() == {"forward", "backward", "both"} for row in found)
    assert {(row.op, row.provider) for row in found} == {
        (op, name) for op in ("linear", "mlp") for name in ("cublas", "triton")
    }


def test_a_native_op_is_timed_on_the_cpu() -> None:
    built = native_library("cpu").handle is not None
    assert ("fused" in providers.default_providers(LOG_MEL, torch.device("cpu"))) == built


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kernels.json"
    argv = ["bench", "kernels", "--op", "layer_norm", "--case", "odd", "one row", "--provider", "fused", "reference"]
    argv += ["--dtype", "float32", "--rounds", "1", "--seconds", "0.001", "--device", "cpu", "--json", str(file)]
    assert main(argv) == 0
    figures = json.loads(file.read_text())
    assert set(figures) == {"machine", "settings", "roofs", "kernels"}
    assert figures["machine"]["versions"]["torch"] == torch.__version__
    assert [(row["case"], row["provider"]) for row in figures["kernels"]] == [
        (case, provider) for case in ("odd", "one row") for provider in ("fused", "reference")
    ]
    printed = capsys.readouterr().out
    for row in figures["kernels"]:
        assert set(row["passes"]) == {"forward", "backward", "both"}
        assert f"{row['passes']['both']['timing']['ms_p50']:.4f}" in printed


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--op", "layernorm"], "--op 'layernorm' is unknown"),
        (["--case", "oddest"], "--case 'oddest' is unknown"),
        (["--provider", "fast"], "--provider 'fast' is unknown"),
        (["--dtype", "float8"], "--dtype 'float8' is unknown"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--op", "layer_norm", "--case", "packed"], "no case of layer_norm is called packed"),
        (["--base", "no-such-ref"], "--base"),
        (["--json", "/no/such/folder/file.json"], "no such directory"),
    ],
)
def test_a_wrong_flag_is_one_line(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", "--device", "cpu", *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_a_rival_that_draws_other_numbers_is_checked_where_nothing_is_drawn() -> None:
    """It can be right there alone, and is timed on the case itself."""
    settings = KernelSettings(
        ops=["add_layer_norm"],
        cases=["packed, dropout"],
        providers=["reference", "torch"],
        dtypes=["float32"],
        rounds=1,
        seconds=1e-4,
    )
    found = {row.provider: row for row in bench_kernels(settings)}
    assert found["reference"].checked_on == "packed, dropout"
    assert found["torch"].checked_on == "packed, dropout, nothing drawn"
    assert list(found["torch"].passes) == ["forward", "backward", "both"]


def test_a_rival_that_is_wrong_where_nothing_is_drawn_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_sum(x: Tensor, residual: Tensor, **_rest: Any) -> tuple[Tensor, Tensor]:
        return x * 1.0, residual * 1.0

    monkeypatch.setitem(ADD_SPEC.rivals, "torch", forgets_the_sum)
    settings = KernelSettings(
        ops=["add_layer_norm"], cases=["packed, dropout"], providers=["torch"], dtypes=["float32"], rounds=1
    )
    (row,) = bench_kernels(settings)
    assert row.reason is not None
    assert row.reason.startswith("wrong on packed, dropout: error of output")
    assert not row.passes
