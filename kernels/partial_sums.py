"""Second level of a deterministic sum: each program of a kernel leaves its share, and these are added in order."""

from torch import Tensor

from .triton_runtime import cdiv, jit, launch, tl


@jit(do_not_specialize=["programs"])
def sum_partials_kernel(partials, total, programs, N, BLOCK_PROGRAMS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Add ``partials`` float32 ``[programs, N]`` in a fixed order: ``total`` ``[N]``."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_column = column < N
    accumulated = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, programs, BLOCK_PROGRAMS):
        program = first + tl.arange(0, BLOCK_PROGRAMS)
        mask = (program < programs)[:, None] & in_column[None, :]
        accumulated += tl.sum(tl.load(partials + program[:, None] * N + column[None, :], mask, other=0.0), 0)
    tl.store(total + column, accumulated.to(total.dtype.element_ty), in_column)


def sum_partials(partials: Tensor, total: Tensor) -> None:
    """Write the sum over programs of ``partials`` float32 ``[programs, N]`` to ``total`` of N elements, any dtype.

    No program sums to zero. Few programs of many columns are read in wider rows than many programs of few.
    """
    programs, columns = partials.shape
    block_programs, block_columns = (32, 128) if columns >= 16_384 else (128, 32)
    launch(
        sum_partials_kernel,
        (cdiv(columns, block_columns),),
        *(partials, total, programs, columns),
        BLOCK_PROGRAMS=block_programs,
        BLOCK_N=block_columns,
    )
