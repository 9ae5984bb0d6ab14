"""Input tokens of the masked autoencoder's decoder: each clip's visible tokens, then its restore tokens.

The kernels write every token once. Backward reads every gradient once: a visible token's is copied from its row, those
of frequency table and restore token are sums in a fixed order.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .checks import check_device, check_dtype, check_shape
from .layout import Layout, Packed, Padded, PatchPositions, pad, padded_layout
from .log_mel import FREQ_PATCHES
from .mae_decoder_input_triton import MAX_WIDTH, mae_decoder_input_bwd_op, mae_decoder_input_fwd_op
from .sincos import sincos_embedding
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal


class MAEDecoderInputFunction(torch.autograd.Function):
    """Joins the two ops; visible rows ``[rows, D]`` in, rows in the decoder's order out."""

    @staticmethod
    def forward(ctx: Any, visible: Tensor, *rest: Any) -> Tensor:
        """Run forward and keep where every row came from."""
        _, visible_freq, _, restore_freq, restore_token, _, *cu_seqlens, ctx.sizes, _ = rest
        ctx.dtypes = visible.dtype, restore_token.dtype
        ctx.save_for_backward(visible_freq, restore_freq, *cu_seqlens)
        return mae_decoder_input_fwd_op(visible, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:  # type: ignore[override]
        """Run backward."""
        d_visible, d_tables = mae_decoder_input_bwd_op(d_out.contiguous(), *ctx.saved_tensors, ctx.sizes, *ctx.dtypes)
        return d_visible, *[None] * 4, d_tables[-1], d_tables[:-1], *[None] * 4


def decoder_layout(visible: Layout, restore: Layout) -> Layout:
    """Layout of the decoder's sequences: visible slots, then restore slots, of each clip."""
    if isinstance(visible, Padded) and isinstance(restore, Padded):
        return Padded(torch.cat((visible.mask, restore.mask), dim=1))
    if isinstance(visible, Packed) and isinstance(restore, Packed):
        lengths = visible.cu_seqlens + restore.cu_seqlens
        return Packed(lengths, visible.max_len + restore.max_len, visible.total + restore.total)
    raise ValueError("decoder_layout: visible and restore must both be Padded or both Packed")


def interleave(visible: Tensor, restore: Tensor, visible_layout: Layout, restore_layout: Layout) -> Tensor:
    """Put each clip's ``visible`` rows before its ``restore`` rows; any trailing shape, differentiable."""
    if isinstance(visible_layout, Padded) and isinstance(restore_layout, Padded):
        return torch.cat((visible, restore), dim=1)
    if not (isinstance(visible_layout, Packed) and isinstance(restore_layout, Packed)):
        raise ValueError("interleave: visible and restore must both be Padded or both Packed")
    restore_before = restore_layout.cu_seqlens[:-1][visible_layout.sequence_ids]
    visible_before = visible_layout.cu_seqlens[1:][restore_layout.sequence_ids]
    visible_rows = torch.arange(visible_layout.total, device=visible.device) + restore_before
    restore_rows = torch.arange(restore_layout.total, device=restore.device) + visible_before
    joined = visible.new_empty((visible_layout.total + restore_layout.total, *visible.shape[1:]))
    return joined.index_copy_(0, visible_rows, visible).index_copy_(0, restore_rows, restore)


def mae_decoder_input(
    visible: Tensor,
    visible_positions: PatchPositions,
    restore_positions: PatchPositions,
    restore_token: Tensor,
    freq_embedding: Tensor,
) -> Tensor:
    """Add position embeddings to ``visible`` tokens and to the learned ``restore_token`` at every restore position.

    A position embedding is the sin/cos one of its time plus row freq of ``freq_embedding``. ``visible`` ``[B, Lv, D]``
    or ``[Tv, D]``; ``restore_token`` ``[D]``; ``freq_embedding`` ``[8, D]``. Returns tokens in :func:`decoder_layout`'s
    order, ``[B, Lv + Lr, D]`` or ``[Tv + Tr, D]``, in the widest dtype of the three: float32 under autocast.
    Raises ValueError on shapes, layouts or devices that do not fit and, fused, on a dtype or width the kernels do not
    take; a freq outside the table is an error of the reference and makes a row of NaN, fused.
    """
    _check(visible, visible_positions, restore_positions, restore_token, freq_embedding)
    return _dispatch(visible, visible_positions, restore_positions, restore_token, freq_embedding)


def mae_decoder_input_reference(
    visible: Tensor,
    visible_positions: PatchPositions,
    restore_positions: PatchPositions,
    restore_token: Tensor,
    freq_embedding: Tensor,
) -> Tensor:
    """Compute :func:`mae_decoder_input` in plain PyTorch."""
    width = visible.shape[-1]
    dtype = _widest(visible, restore_token, freq_embedding)

    def position_embedding(positions: PatchPositions) -> Tensor:
        time_embedding = sincos_embedding(positions.time, width).to(freq_embedding.dtype)
        return time_embedding + F.embedding(positions.freq, freq_embedding)

    visible = visible + position_embedding(visible_positions)
    restore = restore_token + position_embedding(restore_positions)
    return interleave(visible.to(dtype), restore.to(dtype), visible_positions.layout, restore_positions.layout)


def _mae_decoder_input_cuda(
    visible: Tensor,
    visible_positions: PatchPositions,
    restore_positions: PatchPositions,
    restore_token: Tensor,
    freq_embedding: Tensor,
) -> Tensor:
    for name, tensor in (("visible", visible), ("restore_token", restore_token), ("freq_embedding", freq_embedding)):
        check_dtype("mae_decoder_input", name, tensor)
    check_dtype("mae_decoder_input", "freq_embedding", freq_embedding, (restore_token.dtype,))
    width = visible.shape[-1]
    if width > MAX_WIDTH:
        raise ValueError(f"mae_decoder_input: visible is {width} wide, expected at most {MAX_WIDTH}")
    at, to = visible_positions.layout, restore_positions.layout
    out = MAEDecoderInputFunction.apply(
        visible.reshape(-1, width).contiguous(),
        *(n.reshape(-1) for p in (visible_positions, restore_positions) for n in (p.time, p.freq)),
        restore_token.contiguous(),
        freq_embedding.contiguous(),
        *(layout.cu_seqlens if isinstance(layout, Packed) else None for layout in (at, to)),
        [at.batch_size, _longest(at), _longest(to)],
        _widest(visible, restore_token, freq_embedding),
    )
    return out if isinstance(at, Packed) else out.view(at.batch_size, -1, width)


def _longest(layout: Layout) -> int:
    """Slots of the longest sequence; of every one where they are padded."""
    return layout.max_len if isinstance(layout, Packed) else layout.mask.shape[1]


def _widest(*tensors: Tensor) -> torch.dtype:
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _check(
    visible: Tensor, at: PatchPositions, to: PatchPositions, restore_token: Tensor, freq_embedding: Tensor
) -> None:
    op, width = "mae_decoder_input", visible.shape[-1]
    if width % 2:
        raise ValueError(f"{op}: visible is {width} wide, expected an even width")
    check_shape(op, "restore_token", restore_token, (width,))
    check_shape(op, "freq_embedding", freq_embedding, (FREQ_PATCHES, width))
    check_device(op, "visible", visible.device, restore_token=restore_token, freq_embedding=freq_embedding)
    for name, positions in (("visible_positions", at), ("restore_positions", to)):
        layout = positions.layout
        shape = (layout.total,) if isinstance(layout, Packed) else layout.mask.shape
        check_device(op, "visible", visible.device, **{f"{name}.time": positions.time, f"{name}.freq": positions.freq})
        for axis, tensor in (("time", positions.time), ("freq", positions.freq)):
            check_shape(op, f"{name}.{axis}", tensor, shape)
            check_dtype(op, f"{name}.{axis}", tensor, (torch.int64, torch.int32))
    check_shape(op, "visible", visible, (*at.time.shape, width))
    if type(at.layout) is not type(to.layout):
        raise ValueError(f"{op}: visible and restore must both be Padded or both Packed")
    if at.layout.batch_size != to.layout.batch_size:
        raise ValueError(f"{op}: {to.layout.batch_size} clips to restore, expected {at.layout.batch_size} as visible")


_dispatch = backend.register(
    "mae_decoder_input", reference=mae_decoder_input_reference, fused={"cuda": _mae_decoder_input_cuda}
)


def _clips(
    visible: Sequence[int],
    restore: Sequence[int],
    width: int,
    *,
    padded: bool = False,
    tables: torch.dtype | None = None,
    time_step: int = 1,
) -> MakeInputs:
    """Clips of so many visible and restore patches, at random in a clip; both tables in ``tables`` where given."""

    def positions(lengths: Sequence[int], generator: torch.Generator, device: torch.device) -> PatchPositions:
        packed = Packed.from_lengths(lengths, device)
        numbers = torch.randint(0, 750, (packed.total,), generator=generator).sort().values.to(device)
        time, freq = numbers // FREQ_PATCHES * time_step, numbers % FREQ_PATCHES
        if not padded:
            return PatchPositions(time, freq, packed)
        return PatchPositions(pad(time, packed), pad(freq, packed), padded_layout(packed))

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        at, to = (positions(lengths, generator, device) for lengths in (visible, restore))
        wide = tables or dtype
        return {
            "visible": draw_normal((*at.time.shape, width), generator, device, dtype),
            "visible_positions": at,
            "restore_positions": to,
            "restore_token": draw_normal((width,), generator, device, wide),
            "freq_embedding": draw_normal((FREQ_PATCHES, width), generator, device, wide),
        }

    return make


def _bytes(inputs: Inputs, positions_read: int) -> int:
    """Visible rows, all rows in the result's dtype, and so many of the integers of a position."""
    visible, restored = inputs["visible"], inputs["restore_positions"].time.numel()
    rows = visible[..., 0].numel() + restored
    size = _widest(visible, inputs["restore_token"], inputs["freq_embedding"]).itemsize
    return visible.nbytes + rows * (visible.shape[-1] * size + 8 * positions_read)


SPEC = Spec(
    name="mae_decoder_input",
    op=mae_decoder_input,
    reference=mae_decoder_input_reference,
    cases=(
        Case("packed", _clips([3, 0, 7, 1], [9, 2, 0, 40], 96)),
        Case("padded", _clips([3, 0, 7], [9, 2, 0], 96, padded=True)),
        Case("width 770", _clips([2, 1], [3, 5], 770)),
        Case("two columns", _clips([2, 1], [5, 7], 2)),
        Case("float32 tables", _clips([3, 5], [6, 4], 320, tables=torch.float32)),
        Case("more blocks than programs", _clips([35] * 3, [33] * 3, 16)),
        Case("nothing visible", _clips([0, 0], [3, 2], 16)),
        Case("nothing to restore", _clips([3, 2], [0, 0], 16)),
        Case("one row", _clips([1], [0], 16)),
        Case("no row", _clips([0, 0], [0, 0], 16)),
        Case("no clip", _clips([], [], 16)),
        Case("hours of audio", _clips([5], [9], 96, time_step=1000)),
        Case("stage 1", _clips([150] * 512, [600] * 512, 768, tables=torch.float32), paper=True),
        Case("stage 1, bfloat16 stream", _clips([150] * 512, [600] * 512, 768), paper=True),
    ),
    forward=lambda inputs: Work(bytes=_bytes(inputs, positions_read=2)),
    backward=lambda inputs: Work(bytes=_bytes(inputs, positions_read=1)),
)
