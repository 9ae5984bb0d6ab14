"""Every op's SPEC: what tests, benches and the compile gate iterate over. Ops do not import this file."""

from . import layer_norm, patch_mse
from .spec import Spec

SPECS: tuple[Spec, ...] = (
    layer_norm.SPEC,
    layer_norm.ADD_SPEC,
    patch_mse.SPEC,
)
