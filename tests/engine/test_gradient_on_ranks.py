"""The gradient of a batch is the same on 1, 2 and 4 ranks, for every micro-batch size and stash."""

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.data.noise import noise_batch
from cacophony.engine.arena import Arena, ParameterGroup
from cacophony.engine.build import Config, build_model, build_objective
from cacophony.engine.config import RUN_CONFIGS, ContrastiveRunConfig, MaeRunConfig, Stage
from cacophony.engine.distributed import World, join_world
from cacophony.engine.gradient_sum import GradientSum
from cacophony.models.config_io import from_dict, to_dict
from cacophony.models.layers import init_weights
from cacophony.models.weights import load_tensors, save_tensors
from torch import Tensor

CLIPS = 8
BUCKET_BYTES = 8 * 4096
STASHES: dict[Stage, tuple[int, ...]] = {"mae": (1, 10), "contrastive": (0, 1, 3, 10)}

# This file is run again in each rank's process.
RANK = """
import os, runpy
os.environ.update(RANK="{rank}", WORLD_SIZE="{size}", MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
runpy.run_path({file!r})["main"]({configs!r}, {out!r})
"""


def gradient(config: Config, world: World) -> dict[str, Tensor]:
    """The gradient that the ranks have together, every parameter's.

    It is summed after the backward pass, then again while that goes on: on two ranks, whose sums know one order only,
    the bits are those of a sum of everything at once.
    """
    model = build_model(config)
    init_weights(model, 3)
    groups = [ParameterGroup([name for name, _ in model.named_parameters()], 0.0)]
    arena = Arena(model, groups, None, world, bucket_bytes=BUCKET_BYTES)
    assert len(arena.layout.buckets) > 3
    own = CLIPS // world.size
    batch = noise_batch(CLIPS, 300).select(world.rank * own, (world.rank + 1) * own)
    objective, summing = build_objective(config, world), GradientSum(arena, world)
    inputs, found = objective.prepare(batch, 5), list[Tensor]()
    for _ in range(1 if world.size == 1 else 2):
        with summing.watching():
            objective.backward(model, inputs)
        summing.finish()
        whole = arena.gradient.clone()
        for bucket in arena.layout.buckets:
            world.gather_shares(whole[bucket.whole], arena.own_gradient[bucket.own])
        found.append(whole)
        arena.gradient.zero_()
    assert torch.equal(found[0], found[-1])
    if world.size == 2:
        objective.backward(model, inputs)
        assert torch.equal(world.sum_(arena.gradient), found[0])
    return {name: place.of(found[0]) for name, place in arena.places.items()}


def main(configs: str, out: str) -> None:
    """Save the gradient of every configuration, as one of several ranks."""
    world = join_world("cpu", 60.0)
    for name, (stage, raw) in json.loads(Path(configs).read_text()).items():
        found = gradient(from_dict(RUN_CONFIGS[stage], raw, name), world)
        if world.is_main:
            save_tensors(found, Path(out) / f"{name}.safetensors")
    world.barrier()
    world.close()


@pytest.fixture(scope="module")
def configs(mae_config: MaeRunConfig, contrastive_config: ContrastiveRunConfig) -> dict[str, tuple[Stage, Config]]:
    """Every combination of micro-batch size and stash, by name."""
    found: dict[str, tuple[Stage, Config]] = {}
    stages: list[tuple[Stage, Config]] = [("mae", mae_config), ("contrastive", contrastive_config)]
    for stage, config in stages:
        for stash in STASHES[stage]:
            for size in (1, 3, 8):
                objective: Any = replace(config.objective, stash=stash, blocks="by_hand")
                of_case: Any = replace(config, objective=objective, batch_size=CLIPS, micro_batch_size=size)
                found[f"{stage}, stash {stash}, micro-batches of {size}"] = (stage, of_case)
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_micro_batches_and_stash_change_the_order_of_sums_alone(
    start_python: Callable[[str], BaseProcess],
    configs: dict[str, tuple[Stage, Config]],
    tmp_path: Path,
    size: int,
):
    """Budget: 1e-5 of a parameter's largest element, beside the same on one rank in one pass that keeps everything."""
    if size > 1:
        written = tmp_path / "configs.json"
        written.write_text(json.dumps({name: (stage, to_dict(config)) for name, (stage, config) in configs.items()}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {"size": size, "port": port, "file": __file__, "configs": str(written), "out": str(tmp_path)}
        ranks = [start_python(RANK.format(rank=rank, **common)) for rank in range(size)]
        for rank in ranks:
            rank.join(120)
            assert rank.exitcode == 0
    alone = World(0, 1, torch.device("cpu"))
    whole = {stage: gradient(configs[f"{stage}, stash 10, micro-batches of 8"][1], alone) for stage in STASHES}
    for name, (stage, config) in configs.items():
        found = load_tensors(tmp_path / f"{name}.safetensors") if size > 1 else gradient(config, alone)
        assert found.keys() == whole[stage].keys()
        for parameter, expected in whole[stage].items():
            largest = max(float(tensor.abs().max()) for tensor in whole[stage].values())
            torch.testing.assert_close(
                found[parameter],
                expected,
                rtol=0,
                atol=1e-5 * max(float(expected.abs().max()), 0.01 * largest),
                msg=lambda m, n=f"{name}: {parameter}": f"{n}: {m}",
            )
