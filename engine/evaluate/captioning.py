"""Captions of a run on a corpus with captions, and their metrics."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..inference import Cacophony
from .caption_metrics import CaptionMetrics, caption_metrics, check_installed
from .caption_tokens import Tokenization
from .datasets.corpus import CaptionCorpus
from .embedding import Decoding, caption_clips
from .report import corpus_record
from .store import Store


@dataclass(frozen=True)
class Captioning:
    """Metrics and what they were computed from: a caption of each clip."""

    corpus: CaptionCorpus
    decoding: Decoding
    metrics: CaptionMetrics
    captions: Sequence[str]

    def record(self) -> dict[str, Any]:
        """Return metrics, decoding, the account of found and missing clips and all captions, as JSON takes them."""
        clips = zip(self.corpus.clips, self.captions, self.corpus.captions, strict=True)
        return {
            **corpus_record(self.corpus),
            "decoding": asdict(self.decoding),
            **asdict(self.metrics),
            "captions": [
                {"name": clip.name, "caption": caption, "references": list(references)}
                for clip, caption, references in clips
            ],
        }


def evaluate_captioning(
    model: Cacophony,
    corpus: CaptionCorpus,
    decoding: Decoding,
    *,
    tokenization: Tokenization | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> Captioning:
    """Caption every clip of ``corpus`` and score the captions against its own.

    ``store`` keeps the captions. Raises InputError, before anything is captioned, where pycocoevalcap or the Java of
    ``tokenization`` is not installed, or the model has no tokenizer or no caption decoder.
    """
    check_installed(tokenization)
    model.model.require_captions()
    captions = caption_clips(model, corpus.clips, decoding, store or Store(), progress=progress)
    return Captioning(corpus, decoding, caption_metrics(captions, corpus.captions, tokenization), captions)
