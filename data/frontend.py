"""The log-mel spectrogram by DALI's `fn.spectrogram` and our mel matrix, where our own op is not to make it."""

import importlib
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.log_mel import FFT_SIZE, HOP, WINDOW, Spectrogram, mel_matrix, num_frames
from .dali import dali_problem

FrontEndName = Literal["kernels", "dali"]
"""Who makes the log-mel: `kernels.log_mel_patches`, or `DaliLogMel`."""

_INT16_SCALE = 32_768.0


class DaliLogMel:
    """`kernels.log_mel` through DALI: framing, window and FFT magnitude are DALI's, mel bands and logarithm ours.

    DALI's own mel filters are linear in Hz (1.8e-3 away) and its default Hann window is not the periodic one.
    """

    def __init__(self, device: torch.device) -> None:
        problem = dali_problem()
        if problem:
            raise InputError(
                f"data.frontend is dali, but {problem}; install cacophony-engine[dali], or set it to kernels"
            )
        self._device = device
        self._pipeline: Any = None
        self._clips = 0

    def __call__(self, wave: Tensor, wave_offsets: Tensor) -> Spectrogram:
        """Compute the log-mel frames of a batch: int16 or float32 `wave` `[S]` on the device, offsets on the host.

        Raises ValueError for another dtype.
        """
        if wave.dtype not in (torch.int16, torch.float32):
            raise ValueError(f"log_mel by DALI: wave has dtype {wave.dtype}, expected int16 or float32")
        scale = _INT16_SCALE if wave.dtype == torch.int16 else 1.0
        samples = wave_offsets.diff()
        frames = num_frames(samples)
        clips = [clip for clip in wave.split(samples.tolist()) if len(clip)]
        parts = [wave.new_zeros((0, FFT_SIZE // 2 + 1), dtype=torch.float32), *self._magnitudes(clips)]
        mel = torch.cat(parts) @ (mel_matrix(torch.float32, wave.device) / scale)
        return Spectrogram(0.2 * torch.log(mel + 1e-5) + 0.9, torch.nn.functional.pad(frames.cumsum(0), (1, 0)))

    def _magnitudes(self, clips: list[Tensor]) -> list[Tensor]:
        """FFT magnitudes `[ceil(n / 160), 257]` of each clip, float32."""
        if not clips:
            return []
        if len(clips) > self._clips:
            self._clips, self._pipeline = len(clips), self._build(len(clips))
        framed = (num_frames(torch.tensor([len(clip) for clip in clips])) - 1) * HOP + WINDOW
        waves = [clip.float() for clip in clips]
        # For a torch tensor DALI asks for the current CUDA stream, also where there is no GPU.
        self._pipeline.feed_input("wave", waves if self._device.type == "cuda" else [wave.numpy() for wave in waves])
        self._pipeline.feed_input("framed", list(framed.int()[:, None].numpy()))
        (magnitudes,) = self._pipeline.run()
        return [torch.from_dlpack(magnitude) for magnitude in magnitudes]

    def _build(self, clips: int) -> Any:
        dali = importlib.import_module("nvidia.dali")
        on_gpu = self._device.type == "cuda"
        index = torch.cuda.current_device() if on_gpu and self._device.index is None else self._device.index
        pipeline = dali.Pipeline(
            batch_size=clips,
            num_threads=torch.get_num_threads(),
            device_id=index if on_gpu else None,
            prefetch_queue_depth=1,
        )
        window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64).tolist()
        with pipeline:
            wave = dali.fn.external_source(
                name="wave", ndim=1, dtype=dali.types.FLOAT, device="gpu" if on_gpu else "cpu"
            )
            framed = dali.fn.external_source(name="framed", ndim=1, dtype=dali.types.INT32)
            padded = dali.fn.slice(wave, 0, framed, axes=(0,), out_of_bounds_policy="pad")
            pipeline.set_outputs(
                dali.fn.spectrogram(
                    padded,
                    nfft=FFT_SIZE,
                    window_length=WINDOW,
                    window_step=HOP,
                    window_fn=window,
                    power=1,
                    center_windows=False,
                    layout="tf",
                )
            )
        pipeline.build()
        return pipeline
