"""The one ``torch.library.Library`` of the package: ops that launch kernels, opaque to autograd and ``torch.compile``.

An op is functional (it allocates what it returns, and no output aliases another or an input), or its name ends in an
underscore and its schema marks what it changes; its gradient is an op of its own, joined to it by a
``torch.autograd.Function``.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch

from .triton_runtime import INTERPRETING, recording

_LIBRARY = torch.library.Library("cacophony", "DEF")
_ops: dict[str, torch._ops.OpOverload] = {}


def define(
    schema: str, launcher: Callable[..., Any], fake: Callable[..., Any], devices: Collection[str] | None = None
) -> torch._ops.OpOverload:
    """Define ``cacophony::<schema>``, run by ``launcher`` on CUDA, and on the CPU where Triton's interpreter is.

    An op that is not in Triton names the ``devices`` (``"cpu"``, ``"cuda"``) it runs on. ``fake`` takes the same
    arguments and returns empty tensors of the right shapes, dtypes and devices; it must not look at numbers. Returns
    the op, to be called.
    """
    name = schema.partition("(")[0]

    def shapes(*arguments: Any) -> Any:
        return launcher(*arguments) if recording() else fake(*arguments)

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    if devices is None:
        devices = ("cuda", "cpu") if INTERPRETING else ("cuda",)
    for device in devices:
        _LIBRARY.impl(name, launcher, device.upper())
    torch.library.register_fake(f"cacophony::{name}", shapes, lib=_LIBRARY)
    _ops[name] = getattr(torch.ops.cacophony, name).default
    return _ops[name]


def ops(device_type: str) -> dict[str, torch._ops.OpOverload]:
    """Return every op defined so far that runs on devices of ``device_type``, by name."""
    key = device_type.upper()
    return {
        name: op
        for name, op in _ops.items()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"cacophony::{name}", key)
    }
