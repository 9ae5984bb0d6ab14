"""The authors' parameters here and back: sizes from shapes, every value at its place, what does not fit named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cacophony.errors import InputError
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.authors_tree import authors_shapes
from cacophony.models.config import AudioMAEConfig, AudioTextConfig, NetworkConfig, TextConfig, TransformerConfig
from cacophony.models.convert import from_authors, infer_config, to_authors
from cacophony.models.flax_file import read_tree
from hypothesis import given
from hypothesis import strategies as st

GOLDENS = Path(__file__).parents[1] / "goldens"

MAE = AudioMAEConfig(
    encoder=TransformerConfig(width=12, layers=3, heads=2, mlp_width=20),
    decoder=TransformerConfig(width=16, layers=1, heads=4, mlp_width=24),
)
AUDIO_TEXT = AudioTextConfig(
    audio=TransformerConfig(width=12, layers=2, heads=2, mlp_width=20),
    text=TextConfig(width=8, layers=3, heads=2, mlp_width=14, vocab_size=30, max_positions=9),
    caption_layers=2,
    pool_heads=3,
    projection_width=10,
)

ENCODER = "AudioEncoder_0/AudioEncoderLayer_2"
SCANNED = "encoder/layer/ScanFlaxRobertaLayer_0"
SHAPES = {
    "AudioEncoder_0/Dense_0/kernel": (256, 12),
    "AudioEncoder_0/freq_positional_embedding": (8, 12),
    f"{ENCODER}/MultiHeadDotProductAttention_0/query/kernel": (12, 2, 6),
    f"{ENCODER}/MultiHeadDotProductAttention_0/key/bias": (2, 6),
    f"{ENCODER}/MultiHeadDotProductAttention_0/out/kernel": (2, 6, 12),
    f"{ENCODER}/MLP_0/Dense_1/kernel": (20, 12),
    "AudioDecoder_0/Dense_0/kernel": (12, 16),
    "AudioDecoder_0/restore_patch": (16,),
    "AudioDecoder_0/AudioEncoderLayer_0/MultiHeadDotProductAttention_0/value/kernel": (16, 4, 4),
    "AudioDecoder_0/Dense_1/kernel": (16, 256),
    "audio_module/AudioEncoderLayer_1/LayerNorm_1/scale": (12,),
    "audio_attention_pool/query": (12,),
    "audio_attention_pool/Dense_0/kernel": (12, 24),
    "audio_attention_pool/Dense_1/kernel": (12, 10),
    "text_module/embeddings/position_embeddings/embedding": (9, 8),
    "text_module/embeddings/token_type_embeddings/embedding": (1, 8),
    f"text_module/{SCANNED}/attention/self/query/kernel": (3, 8, 8),
    f"text_module/{SCANNED}/intermediate/dense/kernel": (3, 8, 14),
    f"text_module/{SCANNED}/output/LayerNorm/scale": (3, 8),
    "text_module/pooler/attention_pool_query": (1, 8),
    "text_proj/kernel": (8, 10),
    f"decoder_module/{SCANNED}/crossattention/self/key/kernel": (2, 12, 8),
    f"decoder_module/{SCANNED}/crossattention/self/query/kernel": (2, 8, 8),
    "decoder_module/decoder_proj/kernel": (8, 30),
    "logit_scale": (),
}


def random_tree(config: NetworkConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: np.asarray(rng.standard_normal(shape, np.float32)) for path, shape in authors_shapes(config).items()}


def network(config: NetworkConfig) -> AudioMAE | AudioText:
    return AudioMAE(config) if isinstance(config, AudioMAEConfig) else AudioText(config)


def test_the_authors_names_and_shapes():
    found = authors_shapes(MAE) | authors_shapes(AUDIO_TEXT)
    assert {path: found.get(path) for path in SHAPES} == SHAPES


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "AudioMAE_small_orbax_aggregate",
            AudioMAEConfig(
                encoder=TransformerConfig(width=64, layers=2, heads=4, mlp_width=128),
                decoder=TransformerConfig(width=64, layers=2, heads=4, mlp_width=128),
            ),
        ),
        (
            "Cacophony_small",
            AudioTextConfig(
                audio=TransformerConfig(width=64, layers=2, heads=4, mlp_width=128),
                text=TextConfig(width=64, layers=2, heads=4, mlp_width=128, vocab_size=500, max_positions=130),
                caption_layers=2,
                pool_heads=4,
                projection_width=64,
            ),
        ),
    ],
)
def test_the_authors_own_files_have_the_sizes_expected_and_come_back_bit_for_bit(name: str, config: NetworkConfig):
    tree = read_tree(GOLDENS / f"{name}.ckpt")
    assert infer_config(tree, text_heads=4, pool_heads=4) == config
    state = from_authors(tree, config)
    network(config).load_state_dict(state, strict=True)
    back = to_authors(state, config)
    assert list(back) == list(tree)
    for path, values in tree.items():
        assert back[path].shape == values.shape
        assert back[path].tobytes() == values.tobytes()


transformers = st.builds(
    lambda heads, size, layers, mlp_width: TransformerConfig(
        width=2 * size * heads, layers=layers, heads=heads, mlp_width=mlp_width
    ),
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(1, 9),
)  # fmt: skip


@given(transformers, transformers, st.integers(0, 99))
def test_an_autoencoder_of_any_size_is_recognised_and_comes_back(
    encoder: TransformerConfig, decoder: TransformerConfig, seed: int
):
    check_round_trip(AudioMAEConfig(encoder=encoder, decoder=decoder), seed)


@given(transformers, transformers, st.tuples(*[st.integers(1, 11)] * 4), st.integers(0, 99))
def test_an_audio_text_model_of_any_size_is_recognised_and_comes_back(
    audio: TransformerConfig, text: TransformerConfig, sizes: tuple[int, int, int, int], seed: int
):
    vocab_size, max_positions, caption_layers, projection_width = sizes
    config = AudioTextConfig(
        audio=audio,
        text=TextConfig(
            width=text.width, layers=text.layers, heads=text.heads, mlp_width=text.mlp_width,
            vocab_size=vocab_size, max_positions=max_positions,
        ),
        caption_layers=caption_layers,
        pool_heads=audio.heads,
        projection_width=projection_width,
    )  # fmt: skip
    check_round_trip(config, seed, text_heads=text.heads, pool_heads=audio.heads)


def check_round_trip(config: NetworkConfig, seed: int, **heads: int) -> None:
    tree = random_tree(config, seed)
    assert infer_config(tree, **heads) == config
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in network(config).state_dict().items()}
    state = from_authors(tree, config)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in state.values())
    back = to_authors(state, config)
    assert back.keys() == tree.keys()
    for path, values in tree.items():
        np.testing.assert_array_equal(back[path], values, strict=True)


def test_dense_kernels_are_transposed_and_heads_and_layers_are_joined():
    tree, calls = random_tree(AUDIO_TEXT), []
    state = {name: t.numpy() for name, t in from_authors(tree, AUDIO_TEXT, lambda *c: calls.append(c)).items()}
    layer = "audio_module/AudioEncoderLayer_1/MultiHeadDotProductAttention_0"
    x = np.random.default_rng(1).standard_normal((5, 12), np.float32)
    query, key, value = np.split(x @ state["audio_encoder.blocks.1.attention.qkv.weight"].T, 3, axis=1)
    for found, name in ((query, "query"), (key, "key"), (value, "value")):
        expected = np.einsum("td,dhk->thk", x, tree[f"{layer}/{name}/kernel"])
        np.testing.assert_allclose(found.reshape(5, 2, 6), expected, atol=1e-5)
    mixed = np.einsum("thk,hkd->td", x.reshape(5, 2, 6), tree[f"{layer}/out/kernel"])
    np.testing.assert_allclose(x @ state["audio_encoder.blocks.1.attention.out.weight"].T, mixed, atol=1e-5)
    key_value = x @ tree["audio_attention_pool/Dense_0/kernel"]
    np.testing.assert_allclose(x @ state["audio_pooler.value.weight"].T, key_value[:, 12:], atol=1e-5)
    cross = tree[f"decoder_module/{SCANNED}/crossattention/self/value/kernel"][1]
    kv = x @ state["caption_decoder.blocks.1.cross_attention.kv.weight"].T
    np.testing.assert_allclose(kv[:, 8:], x @ cross, atol=1e-5)
    assert calls[-1] == (len(calls), len(calls))


LEAF = f"text_module/{SCANNED}/output/dense/kernel"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({LEAF: None}, f"leaf {LEAF}: missing"),
        ({LEAF: None, "text_proj/bias": None}, f"leaf {LEAF} and 1 more: missing"),
        ({"text_module/pooler/extra": np.zeros(1, np.float32)}, "leaf text_module/pooler/extra: unexpected"),
        ({LEAF: np.zeros((3, 8, 14), np.float32)}, f"leaf {LEAF} has shape (3, 8, 14), expected (3, 14, 8)"),
        ({LEAF: np.full((3, 14, 8), np.nan, np.float32)}, f"leaf {LEAF} holds NaN or infinity"),
        ({"logit_scale": np.array(np.inf, np.float32)}, "leaf logit_scale holds NaN or infinity"),
        ({LEAF: np.zeros((3, 14, 8), np.int32)}, f"leaf {LEAF} has dtype int32"),
        (
            {"audio_module/AudioEncoderLayer_1/LayerNorm_0/scale": None},
            "AudioEncoderLayer_1/LayerNorm_0/scale: missing",
        ),
        ({"audio_module/AudioEncoderLayer_7/x/y": np.zeros(1, np.float32)}, "leaf audio_module/AudioEncoderLayer_2/"),
        ({"text_proj/kernel": None}, "leaf text_proj/kernel is missing"),
        ({"text_proj/kernel": np.zeros(8, np.float32)}, "leaf text_proj/kernel has shape (8,), expected 2 dimensions"),
        ({f"text_module/{SCANNED}/intermediate/dense/kernel": np.zeros((10**6, 1, 1), np.float32)}, "1000000 layers"),
        ({"audio_module/Dense_0/kernel": None}, "neither an AudioMAE's"),
    ],
)
def test_a_leaf_that_does_not_fit_is_named(change: dict[str, Any], expected: str):
    tree: dict[str, Any] = random_tree(AUDIO_TEXT) | change
    tree = {path: values for path, values in tree.items() if values is not None}
    with pytest.raises(InputError) as caught:
        from_authors(tree, infer_config(tree, text_heads=2, pool_heads=3))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("heads", "flag"),
    [({"text_heads": 3}, "--text-heads"), ({"text_heads": 0}, "--text-heads"), ({"pool_heads": 5}, "--pool-heads")],
)
def test_heads_that_do_not_divide_the_width_name_the_flag(heads: dict[str, int], flag: str):
    with pytest.raises(InputError, match=flag):
        infer_config(random_tree(AUDIO_TEXT), **({"text_heads": 2, "pool_heads": 3} | heads))
