"""Every op's SPEC: what tests, benches and the compile gate iterate over. Ops do not import this file."""

from . import layer_norm, mae_decoder_input, patch_mse
from .spec import Spec

SPECS: tuple[Spec, ...] = (
    layer_norm.SPEC,
    layer_norm.ADD_SPEC,
    mae_decoder_input.SPEC,
    patch_mse.SPEC,
)
