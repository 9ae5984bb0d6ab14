"""Which clips of a batch share a forward pass."""

from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError

Limit = tuple[Tensor, int]
"""Tokens of each clip, int64 ``[B]`` on the host, and how many a forward pass may have."""


def cut(clips: int, size: int, limits: Sequence[Limit] = ()) -> list[slice]:
    """Cut so many ``clips``, in order, into forward passes of at most ``size`` clips and within every limit.

    A pass ends before the first clip that does not fit any more. Raises ValueError where a clip alone exceeds a limit.
    """
    per_clip = list(zip(*(lengths.tolist() for lengths, _ in limits), strict=True)) or [()] * clips
    most = [tokens for _, tokens in limits]
    passes, start, used = [], 0, [0] * len(limits)
    for clip, tokens in enumerate(per_clip):
        if any(n > limit for n, limit in zip(tokens, most, strict=True)):
            raise ValueError(f"cut: clip {clip} has {list(tokens)} tokens, expected at most {most}")
        together = [n + more for n, more in zip(used, tokens, strict=True)]
        if clip - start == size or any(n > limit for n, limit in zip(together, most, strict=True)):
            passes.append(slice(start, clip))
            start, together = clip, list(tokens)
        used = together
    return [*passes, slice(start, clips)] if clips else []


def check_longest(lengths: Tensor, longest: int, what: str, setting: str) -> None:
    """Raise InputError where one of ``lengths`` (``what`` of each clip) exceeds what ``setting`` promised."""
    if len(lengths) and int(lengths.max()) > longest:
        raise InputError(
            f"a clip has {int(lengths.max())} {what}, and static micro-batches have room for {longest} by {setting}; "
            f"raise {setting}, or set micro_batch_tokens to 0"
        )
