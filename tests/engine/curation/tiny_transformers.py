"""The smallest directories that transformers loads as a Whisper and as a Qwen2-Audio, with random weights."""

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Tokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

END, START = "<|endoftext|>", "<|startoftranscript|>"
_WHISPER = (END, START, "<|en|>", "<|transcribe|>", "<|notimestamps|>")
_QWEN = (END, "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _vocabulary(special: tuple[str, ...]) -> dict[str, int]:
    return {token: number for number, token in enumerate((*special, *sorted(pre_tokenizers.ByteLevel.alphabet())))}


def write_whisper(directory: Path) -> Path:
    """An encoder and a decoder of one layer that speaks bytes."""
    vocabulary = _vocabulary(_WHISPER)
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], language="en", task="transcribe")
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=64,
        decoder_start_token_id=vocabulary[START],
        bos_token_id=vocabulary[END],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, it says the same of every clip
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    model.save_pretrained(directory)
    WhisperProcessor(WhisperFeatureExtractor(chunk_length=1), tokenizer).save_pretrained(directory)
    return directory


def write_qwen_audio(directory: Path) -> Path:
    """A language model of one layer that hears, with a template for chats."""
    vocabulary = _vocabulary(_QWEN)
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token="<|im_end|>", pad_token=END, unk_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_QWEN[1:])})
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    text = {
        "model_type": "qwen2",
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "eos_token_id": vocabulary["<|im_end|>"],
        "pad_token_id": vocabulary[END],
    }
    config = Qwen2AudioConfig(
        audio_config=audio | {"num_mel_bins": 80, "max_source_positions": 50},
        text_config=text,
        audio_token_index=vocabulary["<|AUDIO|>"],
    )
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    model.save_pretrained(directory)
    extractor = WhisperFeatureExtractor(chunk_length=1)
    Qwen2AudioProcessor(extractor, tokenizer, chat_template=_CHAT).save_pretrained(directory)
    return directory
