"""Products with epilogues against float64, in tiles that are cut, whole, persistent, and loaded through descriptors."""

import dataclasses

import pytest
import torch
from cacophony.kernels.activation import Activation, activation_reference
from cacophony.kernels.linear_tiles import Tile, linear_tile
from cacophony.kernels.linear_triton import launch_linear_dgrad, launch_linear_fwd, linear_fwd_op
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from torch import Tensor

pytestmark = [pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed"), pytest.mark.usefixtures("poison")]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

SMALL = Tile(16, 32, 16, warps=4, stages=2, parts=2)
TILES = {
    "a program a tile": SMALL,
    "whole epilogue": dataclasses.replace(SMALL, parts=1),
    "epilogue in four parts": dataclasses.replace(SMALL, columns=64, parts=4),
    "persistent": dataclasses.replace(SMALL, programs=1),
    "descriptors": dataclasses.replace(SMALL, programs=1, descriptors=True),
}
SHAPES = {"cut": (37, 24, 72), "whole": (32, 32, 64), "one row": (1, 16, 8), "no row": (0, 16, 32)}
EVERY = pytest.mark.parametrize(
    ("tile", "shape"),
    [
        pytest.param(tile, shape, id=f"{tiles}, {name}")
        for tiles, tile in TILES.items()
        for name, shape in SHAPES.items()
        if tile.descriptors or name in ("cut", "whole")
    ],
)
EPILOGUES = pytest.mark.parametrize(("kind", "added"), [(None, False), (None, True), ("silu", True), ("gelu", False)])


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]


def assert_near(found: Tensor, exact: Tensor) -> None:
    """Budget: float32's rounding of a sum of 32 terms of about 1."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=1e-5)


@EVERY
@EPILOGUES
def test_forward(tile: Tile, shape: tuple[int, int, int], kind: Activation | None, added: bool) -> None:
    rows, inside, width = shape
    x, weight, bias, residual = draw((rows, inside), (width, inside), (width,), (rows, width))
    out, pre = launch_linear_fwd(x, weight, bias, residual if added else None, kind or "", True, tile)
    exact = x.double() @ weight.double().T + bias.double()
    assert_near(pre, exact)
    exact = activation_reference(exact, kind) if kind else exact
    assert_near(out, exact + residual.double() if added else exact)


@EVERY
@EPILOGUES
def test_backward(tile: Tile, shape: tuple[int, int, int], kind: Activation | None, added: bool) -> None:
    """The gradient of a linear map's input, through the activation that made it; and the sums of the bias below."""
    rows, inside, width = shape
    d_y, weight, pre, residual = draw((rows, inside), (inside, width), (rows, width), (rows, width))
    d_x, value, sums = launch_linear_dgrad(
        d_y, weight, residual if added else None, pre if kind else None, kind or "", tile
    )
    exact = d_y.double() @ weight.double()
    if kind:
        leaf = pre.double().requires_grad_()
        activated = activation_reference(leaf, kind)
        (exact,) = torch.autograd.grad(activated, leaf, exact)
        assert_near(value, activated.detach())
        assert_near(sums, exact.sum(0))
    else:
        assert value.numel() == sums.numel() == 0
    assert_near(d_x, exact + residual.double() if added else exact)


def test_how_programs_share_the_tiles_and_load_them_changes_no_bit() -> None:
    d_y, weight, pre = draw((45, 40), (40, 72), (45, 72))
    one, *others = (
        launch_linear_dgrad(d_y, weight, None, pre, "gelu", dataclasses.replace(SMALL, parts=parts, **shared))
        for parts in (1, 2)
        for shared in ({}, {"programs": 1}, {"programs": 1, "descriptors": True})
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("descriptors", [False, True])
def test_16_bit_operands_are_summed_in_float32(descriptors: bool) -> None:
    """In float16, which the interpreter multiplies rightly: the output is rounded once."""
    x, weight, bias = draw((37, 512), (24, 512), (24,), dtype=torch.float16)
    tile = dataclasses.replace(SMALL, descriptors=descriptors)
    out, _ = launch_linear_fwd(x, weight, bias, None, "", False, tile)
    exact = x.double() @ weight.double().T + bias.double()
    assert out.dtype == torch.float16
    assert float((out.double() - exact).abs().max()) <= 2.0**-11 * 128  # half a unit of what is below 128


def test_descriptors_load_a_row_cut_out_of_wider_ones() -> None:
    """It is contiguous, whatever its stride, and the TMA unit takes strides of multiples of 16 bytes."""
    wide, weight, bias = draw((5, 18), (8, 16), (8,))
    x = wide[2:3, :16]
    assert x.is_contiguous()
    assert x.stride(0) * x.element_size() % 16
    assert x.data_ptr() % 16 == 0
    tile = dataclasses.replace(SMALL, descriptors=True)
    out, _ = launch_linear_fwd(x, weight, bias, None, "", False, tile)
    assert_near(out, x.double() @ weight.double().T + bias.double())


def test_the_activation_is_that_of_what_backward_reads() -> None:
    """Kept or not, pre is rounded before it is activated, so that the value made again in backward is the same."""
    x, weight, bias = draw((9, 40), (24, 40), (24,), dtype=torch.float16)
    out, pre = linear_fwd_op(x, weight, bias, None, "silu", True)
    alone, nothing = linear_fwd_op(x, weight, bias, None, "silu", False)
    assert torch.equal(alone, out)
    assert nothing.numel() == 0
    d_y, weight_out = draw((9, 16), (16, 24), dtype=torch.float16)
    _, value, _ = launch_linear_dgrad(d_y, weight_out, None, pre, "silu", SMALL)
    assert torch.equal(value, out)


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_descriptors_are_for_hopper_and_for_rows_of_multiples_of_16_bytes() -> None:
    x, weight = on_meta(512, 768), on_meta(3072, 768)
    with record_launches(80):
        assert not linear_tile("fwd", x, weight).descriptors
    with record_launches(90):
        assert linear_tile("fwd", x, weight).descriptors
        assert linear_tile("dgrad", on_meta(512, 3072), weight).descriptors
        assert not linear_tile("fwd", on_meta(512, 764), on_meta(3072, 764)).descriptors
        assert not linear_tile("dgrad", on_meta(512, 3072), on_meta(3072, 764)).descriptors
        assert not linear_tile("fwd", x.float(), weight.float()).descriptors


def test_programs_fill_the_gpu_and_no_more() -> None:
    """132 multiprocessors on ``meta``."""
    tile = dataclasses.replace(SMALL, programs=2)
    grids = []
    for rows in (64, 131_072):
        with record_launches() as launches:
            launch_linear_fwd(on_meta(rows, 64), on_meta(128, 64), on_meta(128), None, "", False, tile)
        grids += [launch.grid for launch in launches]
    assert grids == [(16,), (264,)]
