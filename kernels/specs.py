"""Every op's SPEC: what tests, benches, the compile gate and `cacophony parity` iterate over. Ops do not import it."""

from . import (
    activation,
    adamw,
    attention,
    attention_pool,
    caption_loss,
    dropout,
    info_nce,
    layer_norm,
    linear,
    log_mel,
    mae_decoder_input,
    mlp,
    patch_embed,
    patch_mask,
    patch_mse,
    sam,
)
from .spec import Spec

SPECS: tuple[Spec, ...] = (
    log_mel.SPEC,
    patch_mask.SPEC,
    patch_embed.SPEC,
    layer_norm.SPEC,
    layer_norm.ADD_SPEC,
    mae_decoder_input.SPEC,
    patch_mse.SPEC,
    linear.SPEC,
    mlp.SPEC,
    activation.SPEC,
    attention.SPEC,
    attention_pool.SPEC,
    dropout.SPEC,
    info_nce.SPEC,
    caption_loss.SPEC,
    sam.NORM_SPEC,
    sam.PERTURB_SPEC,
    adamw.SPEC,
)
