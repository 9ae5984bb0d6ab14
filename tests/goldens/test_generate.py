"""Caption generation against the authors' ``decode``: tokens, and the logits of every step through the caches."""

import torch
from cacophony.models.generate import sample

from .support import MODEL_OPS, audio_patches, audio_text, golden, outputs_of, run_on, worst

STORED = golden("audio_text")


@run_on(*MODEL_OPS)
def test_tokens_and_step_logits(device: torch.device) -> None:
    """Rows end at different steps or never; after EOS the authors' arrays hold 0."""
    model = audio_text(device)
    patches = audio_patches("padded", device)
    hidden = model.audio_encoder(patches)
    with outputs_of(model.caption_decoder.head) as logits:
        tokens = sample(model, hidden, patches.layout, temperature=0.0, max_length=20)
    assert tokens.tolist() == STORED["decode/tokens_greedy"].tolist()
    live = torch.from_numpy(STORED["decode/live_steps"])
    found = torch.stack(logits, dim=1).cpu()[live]
    assert worst(STORED.deviations("live_steps", {"logits": found}))[0] < 2e-5


@run_on(*MODEL_OPS)
def test_cold_sampling_is_greedy(device: torch.device) -> None:
    model = audio_text(device)
    patches = audio_patches("padded", device)
    tokens = sample(model, model.audio_encoder(patches), patches.layout, temperature=0.01, max_length=20)
    assert tokens.tolist() == STORED["decode/tokens_T0.01"].tolist()
