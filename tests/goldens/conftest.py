"""The op backend of a golden test, as :func:`~.support.run_on` asks for it."""

from collections.abc import Iterator

import pytest
import torch
from cacophony.kernels.backend import Backend, use_backend

from .support import fused_ops


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Run the test's ops on one backend; gives the device for its tensors.

    ``fused`` runs every op that has a fused implementation there, the others by their reference.
    """
    asked: tuple[Backend, torch.device] = request.param
    backend, device = asked
    with use_backend("reference"), use_backend(backend, ops=fused_ops(device)):
        yield device
