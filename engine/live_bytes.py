"""How many bytes of tensors live while code runs, counted storage by storage, on any device, ``meta`` included."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts storages that ops return while the mode is on: ``live`` bytes now, ``peak`` at most.

    Storages that exist before, parameters and inputs say, are not counted; nor is what an op allocates and frees inside
    itself. Storages smaller than a block of the CUDA allocator (512 bytes) count as one.
    """

    BLOCK_BYTES = 512

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op and count what it returned; what it is given and was never seen lived before."""
        for storage in _storages((args, kwargs)):
            self._remember(storage, 0)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._remember(storage, -(-storage.nbytes() // self.BLOCK_BYTES) * self.BLOCK_BYTES)
        return result

    def _remember(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage._cdata, size)

    def _free(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_iter(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf.untyped_storage()
