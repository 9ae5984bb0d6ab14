"""Every fused op on every small case of its SPEC: right within its budget, sound as a torch op, whole when compiled."""

from typing import Any

import pytest
import torch
from cacophony.kernels import library
from cacophony.kernels.accuracy import deviations, map_tensors, named_tensors
from cacophony.kernels.backend import choices, choose, use_backend
from cacophony.kernels.spec import Case, Spec
from cacophony.kernels.specs import SPECS
from cacophony.kernels.triton_runtime import HAS_TRITON, INTERPRETING
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fused(name: str) -> bool:
    with use_backend("fused"):
        return choose(name, DEVICE).path == "fused"


FUSED = [spec for spec in SPECS if fused(spec.name)]
NAMED = {spec.name: spec for spec in FUSED} | {
    f"{spec.name}, {name}": variant for spec in FUSED for name, variant in spec.variant_specs().items()
}
COMPILED = {name: spec for name, spec in NAMED.items() if not spec.sizes_from_host}
SMALL = [
    pytest.param(spec, case, id=f"{name}: {case.name}")
    for name, spec in NAMED.items()
    for case in spec.cases
    if not case.paper
]


def run(spec: Spec, inputs: Any) -> dict[str, Tensor]:
    """Outputs and, where there are any, gradients of the sum of their squares, by name."""
    outputs = dict(named_tensors(spec.op(**inputs), "output"))
    results = {name: output.detach() for name, output in outputs.items()}
    leaves = {name: leaf for name, leaf in named_tensors(inputs) if leaf.requires_grad}
    squares = [output.float().square().sum() for output in outputs.values() if output.requires_grad]
    if leaves and squares:
        gradients = torch.autograd.grad(torch.stack(squares).sum(), list(leaves.values()), allow_unused=True)
        results |= {f"d {name}": g for name, g in zip(leaves, gradients, strict=True) if g is not None}
    return results


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("spec", "case"), SMALL)
def test_error_is_within_the_budget(spec: Spec, case: Case, dtype: torch.dtype) -> None:
    if spec.tensor_cores and INTERPRETING and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies bfloat16 matrices wrongly")
    too_large = [d for d in deviations(spec, case, DEVICE, dtype, backend="fused") if not d.ok]
    assert not too_large


@pytest.mark.parametrize(("spec", "case"), SMALL)
def test_the_same_call_gives_the_same_bits(spec: Spec, case: Case) -> None:
    with use_backend("fused"):
        one, other = (run(spec, case.inputs(DEVICE, torch.float32)) for _ in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# Dynamo itself instantiates the autograd.Functions it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("spec", COMPILED.values(), ids=COMPILED)
def test_compiles_whole_and_gives_the_same(spec: Spec) -> None:
    case = spec.cases[0]
    torch._dynamo.reset()
    compiled = torch.compile(spec.op, fullgraph=True, backend="aot_eager")
    with use_backend("fused"):
        expected = run(spec, case.inputs(DEVICE, torch.float32))
        found = run(Spec(**{**vars(spec), "op": compiled}), case.inputs(DEVICE, torch.float32))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


class Calls(TorchDispatchMode):
    """Collects the arguments of the package's ops, one call of each set of argument shapes and dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "cacophony":
            copies = tuple(map_tensors(lambda t: t.detach().clone(), list(args)))
            self.calls.setdefault(func.name().partition("::")[2], []).append(copies)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def calls() -> dict[str, list[tuple[Any, ...]]]:
    with Calls() as mode, use_backend("fused"):
        for spec in NAMED.values():
            run(spec, spec.cases[0].inputs(DEVICE, torch.float32))
    return mode.calls


@pytest.mark.parametrize("name", sorted(library.ops(DEVICE.type)))
def test_is_a_sound_torch_op(name: str, calls: dict[str, list[tuple[Any, ...]]]) -> None:
    assert calls.get(name), f"no first case of a SPEC calls {name}"
    for arguments in calls[name]:
        torch.library.opcheck(library.ops(DEVICE.type)[name], arguments)


def test_every_fused_op_has_a_spec() -> None:
    with use_backend("fused"):
        names = {choice.op for choice in choices(DEVICE) if choice.path == "fused"}
    assert names <= {spec.name for spec in SPECS}
