"""A cleaner that is being trained: on one device or sharded over ranks, its checkpoints, all in safetensors and json.

checkpoint-0003/    a transformers directory, and
    optimizer.safetensors   moments of AdamW, by parameter, in float32
    state.json              epoch, history of losses
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ...data.curate.variants import load_cleaner
from ...errors import InputError
from ...json_file import write_json
from ...models.weights import load_tensors, save_tensors
from ..distributed import World

OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Learner:
    """Model, tokenizer and optimiser of this rank."""

    def __init__(self, name: str, world: World, *, weight_decay: float, checkpointing: bool) -> None:
        """Load a directory or a name on the hub; over several ranks weights, gradients and moments are sharded.

        Raises `InputError` where it is no encoder-decoder in safetensors.
        """
        self.world = world
        self.model, self.tokenizer = load_cleaner(name)
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if world.size > 1:
            mesh = init_device_mesh(world.device.type, (world.size,))
            split = set(self.model._no_split_modules or ())
            for block in [part for part in self.model.modules() if type(part).__name__ in split]:
                fully_shard(block, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        else:
            self.model.to(world.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=weight_decay)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint under a temporary name, then rename it; every rank takes part, rank 0 writes."""
        weights = get_model_state_dict(self.model, options=_WHOLE)
        moments: dict[str, Any] = get_optimizer_state_dict(self.model, self.optimizer, options=_WHOLE)
        if not self.world.is_main:
            return
        unfinished = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        # Gathered from shards, tied weights are tensors of their own: each goes into the file once.
        once = {name for name, _ in self.model.named_parameters()} | {name for name, _ in self.model.named_buffers()}
        self.model.save_pretrained(unfinished, state_dict={name: weights[name] for name in weights if name in once})
        self.tokenizer.save_pretrained(unfinished)
        save_tensors(_flat(moments["state"]), unfinished / OPTIMIZER_NAME)
        write_json(unfinished / STATE_NAME, state)
        unfinished.rename(folder)

    def resume_optimizer(self, folder: Path) -> None:
        """Take the moments from a checkpoint whose weights are loaded; every rank takes part."""
        state: dict[str, Any] = get_optimizer_state_dict(self.model, self.optimizer, options=_WHOLE)
        if self.world.is_main:
            saved = load_tensors(folder / OPTIMIZER_NAME)
            expected = {name: tensor.shape for name, tensor in _flat(state["state"]).items()}
            if {name: tensor.shape for name, tensor in saved.items()} != expected:
                raise InputError(
                    f"{folder / OPTIMIZER_NAME}: not of this model; remove {folder.parent} and start again"
                )
            state["state"] = {
                name: {kind: saved[f"{name}/{kind}"] for kind in kinds} for name, kinds in state["state"].items()
            }
        whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.world.size > 1)
        set_optimizer_state_dict(self.model, self.optimizer, state, options=whole)


def _flat(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}/{kind}": tensor for name, kinds in state.items() for kind, tensor in kinds.items()}
