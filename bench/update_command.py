"""The command `bench update`."""

from dataclasses import asdict

from ..engine.config import Precision
from ..engine.distributed import choose_device
from ..json_file import check_writable
from .commands import JsonFile, finish
from .roofline import Roofs, measure_roofs
from .tables import roof_line, update_goals, update_table
from .update import UpdateSettings, bench_updates, update_ratios
from .update_ways import WAYS, Lengths, UpdateProvider


def update_command(
    *,
    preset: str = "paper_stage2",
    clips: int = 4096,
    micro_batch_size: int = 64,
    rounds: int = 3,
    provider: tuple[UpdateProvider, ...] = tuple(WAYS),
    lengths: tuple[Lengths, ...] = ("realistic", "full"),
    precision: Precision = "bf16",
    device: str = "auto",
    json_file: JsonFile = None,
) -> int:
    """Time stage 2's whole update, SAM included, on noise; what is wrong is refused a time.

    Args:
        preset: Run of stage 2 whose network and settings are taken.
        clips: Clips of an update.
        micro_batch_size: Clips of a forward pass of the rivals; ours is planned for the GPU's memory.
        rounds: Updates timed of each.
        provider: fused, ours, on packed tokens; gradcache, eager PyTorch with scaled_dot_product_attention and SAM
            tensor by tensor on padded tokens, which embeds everything twice; gradcache packed; compile, gradcache
            through torch.compile.
        lengths: realistic, clips of 1 to 10.24 s and captions of 18 tokens in the mean; full, all as long as allowed.
        precision: Precision of the forward and backward pass.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_file: File to write the same figures to as JSON, with device and versions.
    """
    if json_file is not None:
        check_writable(json_file)
    chosen = choose_device(device)
    settings = UpdateSettings(
        preset=preset,
        clips=clips,
        micro_batch_size=micro_batch_size,
        rounds=rounds,
        providers=provider,
        lengths=lengths,
        precision=precision,
        device=str(chosen),
    )
    settings.check()
    roofs = asdict(measure_roofs(chosen, seconds=0.3))
    rows = [asdict(row) for row in bench_updates(settings, Roofs(**roofs))]
    ratios = update_ratios(rows)
    print("\n".join([update_table(rows), *update_goals(rows, ratios), f"roofs: {roof_line(roofs)}"]))
    figures = {"settings": asdict(settings), "roofs": roofs, "updates": rows, "update_ratios": ratios}
    finish(json_file, chosen, figures)
    return 0
