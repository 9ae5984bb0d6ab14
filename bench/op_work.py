"""The work that the ops of a step cannot do without, from their SPECs and the arguments they are called with."""

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..engine.phases import BACKWARD, PHASES
from ..kernels.accuracy import named_tensors
from ..kernels.backend import reference_of
from ..kernels.spans import OpCall, listening, listening_to_ops
from ..kernels.spec import Spec, Work
from ..kernels.specs import SPECS
from .step_trace import BETWEEN, OP_GROUPS

OpWork = dict[tuple[str, str], Work]
"""By phase and op, as a :class:`~.step_trace.StepTrace` names them."""


def count_work(step: Callable[[], object]) -> OpWork:
    """Make a step and add up the work of the ops it dispatches.

    Ops whose SPEC is of another form than their dispatch are left out, and so are steps of ops called alone.
    """
    specs = {spec.name: spec for spec in SPECS}
    found: defaultdict[tuple[str, str], Work] = defaultdict(lambda: Work(0))
    phase = [BETWEEN]

    def add(where: str, op: str, work: Work) -> None:
        key = where, OP_GROUPS.get(op, op)
        found[key] = Work(found[key].bytes + work.bytes, found[key].flops + work.flops)

    @contextlib.contextmanager
    def entering(name: str) -> Iterator[None]:
        if name not in PHASES:
            yield
            return
        before, phase[0] = phase[0], name
        try:
            yield
        finally:
            phase[0] = before

    @contextlib.contextmanager
    def calling(call: OpCall) -> Iterator[None]:
        spec = specs[call.name]
        inputs = _inputs(spec, call) if call.args else None
        if inputs is not None:
            add(phase[0], call.name, spec.forward(inputs))
            if spec.backward is not None and (call.with_backward or _asks_for_gradient(inputs)):
                add(phase[0] if call.with_backward else BACKWARD, call.name, spec.backward(inputs))
        yield

    with listening(entering), listening_to_ops(calling):
        step()
    return dict(found)


def _inputs(spec: Spec, call: OpCall) -> dict[str, Any] | None:
    """Return the arguments by name, None where their names are not known."""
    signature = inspect.signature(spec.op)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        signature = inspect.signature(reference_of(call.name))
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _asks_for_gradient(inputs: dict[str, Any]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for _, tensor in named_tensors(inputs))
