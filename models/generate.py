"""Caption generation with cached keys and values: sampling, greedy, beam search (the authors' ``decode``).

The next token is read by the causal text encoder, then by the caption decoder; both keep their caches, so a step costs
one token. Sequences start with BOS; EOS is written; the slots after it hold 0.
"""

import torch
from torch import Tensor

from ..kernels import counter_rng
from ..kernels.layout import Layout, Padded
from .audio_text import AudioText
from .block import StackCache

BOS, PAD, EOS = 0, 1, 2  # RoBERTa's ids
MAX_LENGTH = 100  # BOS included: at most 99 new tokens, as in the authors' evaluation


class _Decoding:
    """The state of a batch being decoded: caches of both stacks and the audio it attends to."""

    def __init__(self, model: AudioText, audio_hidden: Tensor, audio_layout: Layout) -> None:
        model.require_captions()
        self.model = model
        self.audio_hidden = audio_hidden
        self.audio_layout = audio_layout
        self.text_cache = StackCache.empty(len(model.text_encoder.blocks))
        self.caption_cache = StackCache.empty(len(model.caption_decoder.blocks))

    def next_logits(self, token_ids: Tensor, position: int) -> Tensor:
        """Feed the tokens ``[B]`` at ``position``; returns logits ``[B, V]`` of the next ones, in float32."""
        layout = Padded(torch.ones_like(token_ids[:, None], dtype=torch.bool))
        hidden = self.model.text_encoder(token_ids[:, None], layout, cache=self.text_cache, first_position=position)
        hidden = self.model.caption_decoder(
            hidden, layout, self.audio_hidden, self.audio_layout, cache=self.caption_cache
        )
        return self.model.caption_decoder.logits(hidden[:, 0]).float()

    def reorder(self, rows: Tensor) -> None:
        """Keep the sequences ``rows``."""
        self.text_cache.reorder(rows)
        self.caption_cache.reorder(rows)


def _check(model: AudioText, audio_layout: Layout, max_length: int) -> Padded:
    if not isinstance(audio_layout, Padded):
        raise ValueError("generation takes padded audio")
    if not 2 <= max_length <= model.config.text.max_positions:
        raise ValueError(f"max_length {max_length} must lie between 2 and {model.config.text.max_positions} positions")
    return audio_layout


@torch.inference_mode()
def sample(
    model: AudioText,
    audio_hidden: Tensor,
    audio_layout: Layout,
    *,
    temperature: float = 0.1,
    seed: int | Tensor = 0,
    max_length: int = MAX_LENGTH,
) -> Tensor:
    """Caption clips by sampling from softmax(logits / temperature); temperature 0 is greedy decoding.

    ``audio_hidden`` ``[B, L, D]``, padded. The draw at a position is a function of ``seed`` (one, or int64 ``[B]``) and
    the position alone, so a clip's caption does not depend on the clips beside it. Returns token ids int64
    ``[B, max_length]``.
    """
    audio_layout = _check(model, audio_layout, max_length)
    state = _Decoding(model, audio_hidden, audio_layout)
    batch_size, device = audio_hidden.shape[0], audio_hidden.device
    out = torch.zeros(batch_size, max_length, dtype=torch.int64, device=device)
    out[:, 0] = BOS
    finished = torch.zeros(batch_size, dtype=torch.bool, device=device)
    for position in range(max_length - 1):
        logits = state.next_logits(torch.where(finished, PAD, out[:, position]), position)
        if temperature == 0:
            chosen = logits.argmax(dim=-1)
        else:
            chosen = _draw((logits / temperature).softmax(dim=-1), seed, position)
        out[:, position + 1] = torch.where(finished, 0, chosen)
        finished |= chosen == EOS
        if bool(finished.all()):
            break
    return out


def _draw(probabilities: Tensor, seed: int | Tensor, position: int) -> Tensor:
    """Draw a token for each row ``[B, V]`` by inverting its distribution at one number in (0, 1)."""
    root = torch.zeros((), dtype=torch.int64, device=probabilities.device)
    key = counter_rng.fold(counter_rng.fold(root, seed), position)
    bits = counter_rng.random_bits(key, torch.zeros_like(key))
    at = ((bits.double() + 0.5) / 2**32).reshape(-1, 1)
    cumulative = probabilities.double().cumsum(dim=-1)
    return (cumulative < at * cumulative[:, -1:]).sum(dim=-1)


@torch.inference_mode()
def beam_search(
    model: AudioText, audio_hidden: Tensor, audio_layout: Layout, *, beams: int = 3, max_length: int = MAX_LENGTH
) -> Tensor:
    """Caption clips by beam search; the beam with the highest mean log-probability per token wins.

    ``audio_hidden`` ``[B, L, D]``, padded. Returns token ids int64 ``[B, max_length]``.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}; expected at least 1")
    audio_layout = _check(model, audio_layout, max_length)
    batch_size, device = audio_hidden.shape[0], audio_hidden.device
    repeated = Padded(audio_layout.mask.repeat_interleave(beams, dim=0))
    state = _Decoding(model, audio_hidden.repeat_interleave(beams, dim=0), repeated)

    out = torch.zeros(batch_size * beams, max_length, dtype=torch.int64, device=device)
    out[:, 0] = BOS
    finished = torch.zeros(batch_size * beams, dtype=torch.bool, device=device)
    new_tokens = torch.zeros(batch_size * beams, device=device)
    # All beams of a clip start equal: only the first may propose, or every beam would be the same.
    score = torch.full((batch_size, beams), -torch.inf, device=device)
    score[:, 0] = 0.0
    first_row = torch.arange(batch_size, device=device)[:, None] * beams
    for position in range(max_length - 1):
        log_p = state.next_logits(torch.where(finished, PAD, out[:, position]), position).log_softmax(dim=-1)
        vocabulary = log_p.shape[-1]
        log_p[finished] = -torch.inf
        log_p[finished, 0] = 0.0
        candidates = (score.view(-1, 1) + log_p).view(batch_size, beams * vocabulary)
        score, index = candidates.topk(beams, dim=1)
        rows = (first_row + index // vocabulary).flatten()
        chosen = (index % vocabulary).flatten()
        state.reorder(rows)
        out, finished, new_tokens = out[rows], finished[rows], new_tokens[rows]
        out[:, position + 1] = chosen
        new_tokens += ~finished
        finished = finished | (chosen == EOS)
        if bool(finished.all()):
            break
    best = (score / new_tokens.view(batch_size, beams).clamp_min(1)).argmax(dim=1)
    return out[first_row[:, 0] + best]
