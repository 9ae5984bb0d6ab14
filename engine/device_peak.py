"""What a device could compute at most."""

import torch

# Dense bf16 peak, FLOP/s, by a part of the device's name (NVIDIA data sheets, SXM parts).
_PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of ``device`` in FLOP/s, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)
