"""The names and shapes of the authors' JAX parameters beside ours (their ``src/caco``, commit 9e5cfce).

A tree is flat: path joined by ``/``, below ``['0']['params']``. Dense kernels are ``[in, out]`` there and ``[out, in]``
here; queries, keys and values are one matrix here; scanned text layers have a leading layer axis there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..kernels.log_mel import FREQ_PATCHES, PATCH_PIXELS
from .config import AudioMAEConfig, NetworkConfig, TextConfig, TransformerConfig

Shape = tuple[int, ...]
Tree = Mapping[str, np.ndarray]

AUDIO_LAYER = "AudioEncoderLayer_"
SCANNED = "encoder/layer/ScanFlaxRobertaLayer_0"


@dataclass(frozen=True)
class Leaf:
    """A leaf of the authors' tree, or one layer of a scanned one; ``in_features`` is set for Dense kernels."""

    path: str
    shape: Shape
    in_features: int | None = None
    layer: int | None = None

    def rows(self, tree: Tree) -> np.ndarray:
        """Return the leaf with output features first."""
        array = tree[self.path] if self.layer is None else tree[self.path][self.layer]
        return array if self.in_features is None else array.reshape(self.in_features, -1).T

    def restored(self, rows: np.ndarray) -> np.ndarray:
        """Undo :meth:`rows`."""
        return (rows if self.in_features is None else rows.T).reshape(self.shape)


@dataclass(frozen=True)
class Rule:
    """The rows of ``ours`` one below another are the rows of ``leaves`` one below another."""

    ours: tuple[tuple[str, Shape], ...]
    leaves: tuple[Leaf, ...]


def authors_shapes(config: NetworkConfig) -> dict[str, Shape]:
    """Return path and shape of every leaf of the authors' tree for networks of these sizes."""
    shapes: dict[str, Shape] = {}
    layers: dict[str, int] = {}
    for leaf in (leaf for rule in rules(config) for leaf in rule.leaves):
        shapes[leaf.path] = leaf.shape
        if leaf.layer is not None:
            layers[leaf.path] = max(layers.get(leaf.path, 0), leaf.layer + 1)
    return {path: (layers[path], *shape) if path in layers else shape for path, shape in shapes.items()}


def rules(config: NetworkConfig) -> list[Rule]:
    """Return how every parameter of ``config``'s network comes from the authors' leaves, and back."""
    if isinstance(config, AudioMAEConfig):
        return [*_audio_encoder("encoder", "AudioEncoder_0", config.encoder), *_mae_decoder(config)]
    width = config.text.width
    return [
        *_audio_encoder("audio_encoder", "audio_module", config.audio),
        *_audio_pooler(config.audio.width, config.projection_width),
        *_text_encoder(config.text),
        _table("text_pooler.query.weight", (width,), "text_module/pooler/attention_pool_query", (1, width)),
        *_dense("text_pooler.key", "text_module/pooler/key_proj", width, width),
        *_dense("text_pooler.value", "text_module/pooler/value_proj", width, width),
        *_dense("text_pooler.projection", "text_proj", width, config.projection_width),
        *_roberta_layers("caption_decoder", "decoder_module", config.text, config.caption_layers, config.audio.width),
        *_dense("caption_decoder.head", "decoder_module/decoder_proj", width, config.text.vocab_size),
        _table("logit_scale.value", (), "logit_scale", ()),
    ]


def _audio_encoder(ours: str, theirs: str, config: TransformerConfig) -> Iterator[Rule]:
    width = config.width
    yield from _dense(f"{ours}.patch", f"{theirs}/Dense_0", PATCH_PIXELS, width)
    freq = (FREQ_PATCHES, width)
    yield _table(f"{ours}.freq_embedding.weight", freq, f"{theirs}/freq_positional_embedding", freq)
    yield from _audio_layers(ours, theirs, config)


def _mae_decoder(config: AudioMAEConfig) -> Iterator[Rule]:
    theirs, width = "AudioDecoder_0", config.decoder.width
    yield from _dense("decoder.embed", f"{theirs}/Dense_0", config.encoder.width, width)
    freq = (FREQ_PATCHES, width)
    yield _table("decoder.freq_embedding.weight", freq, f"{theirs}/freq_positional_embedding", freq)
    yield _table("decoder.restore_token.weight", (width,), f"{theirs}/restore_patch", (width,))
    yield from _audio_layers("decoder", theirs, config.decoder)
    yield from _dense("decoder.pixels", f"{theirs}/Dense_1", width, PATCH_PIXELS)


def _audio_layers(ours: str, theirs: str, config: TransformerConfig) -> Iterator[Rule]:
    width, heads = config.width, config.heads
    split = (heads, width // heads)
    for number in range(config.layers):
        block, layer = f"{ours}.blocks.{number}", f"{theirs}/{AUDIO_LAYER}{number}"
        attention = f"{layer}/MultiHeadDotProductAttention_0"
        kernels = tuple(Leaf(f"{attention}/{n}/kernel", (width, *split), width) for n in ("query", "key", "value"))
        biases = tuple(Leaf(f"{attention}/{n}/bias", split) for n in ("query", "key", "value"))
        yield Rule(((f"{block}.attention.qkv.weight", (3 * width, width)),), kernels)
        yield Rule(((f"{block}.attention.qkv.bias", (3 * width,)),), biases)
        out = Leaf(f"{attention}/out/kernel", (*split, width), width)
        yield Rule(((f"{block}.attention.out.weight", (width, width)),), (out,))
        yield _table(f"{block}.attention.out.bias", (width,), f"{attention}/out/bias", (width,))
        yield from _norm(f"{block}.attention_norm", f"{layer}/LayerNorm_0", width)
        yield from _norm(f"{block}.mlp_norm", f"{layer}/LayerNorm_1", width)
        yield from _dense(f"{block}.mlp_in", f"{layer}/MLP_0/Dense_0", width, config.mlp_width)
        yield from _dense(f"{block}.mlp_out", f"{layer}/MLP_0/Dense_1", config.mlp_width, width)
    yield from _norm(f"{ours}.norm", f"{theirs}/LayerNorm_0", width)


def _audio_pooler(width: int, projection_width: int) -> Iterator[Rule]:
    ours, theirs = "audio_pooler", "audio_attention_pool"
    yield _table(f"{ours}.query.weight", (width,), f"{theirs}/query", (width,))
    weights = ((f"{ours}.key.weight", (width, width)), (f"{ours}.value.weight", (width, width)))
    biases = ((f"{ours}.key.bias", (width,)), (f"{ours}.value.bias", (width,)))
    yield Rule(weights, (Leaf(f"{theirs}/Dense_0/kernel", (width, 2 * width), width),))
    yield Rule(biases, (Leaf(f"{theirs}/Dense_0/bias", (2 * width,)),))
    yield from _dense(f"{ours}.projection", f"{theirs}/Dense_1", width, projection_width)


def _text_encoder(config: TextConfig) -> Iterator[Rule]:
    embeddings = "text_module/embeddings"
    for ours, theirs, rows in (
        ("word", "word", config.vocab_size),
        ("position", "position", config.max_positions),
        ("type", "token_type", 1),
    ):
        shape = (rows, config.width)
        path = f"{embeddings}/{theirs}_embeddings/embedding"
        yield _table(f"text_encoder.{ours}_embedding.weight", shape, path, shape)
    yield from _norm("text_encoder.norm", f"{embeddings}/LayerNorm", config.width)
    yield from _roberta_layers("text_encoder", "text_module", config, config.layers, None)


def _roberta_layers(
    ours: str, theirs: str, config: TextConfig, layers: int, context_width: int | None
) -> Iterator[Rule]:
    width, mlp_width, stack = config.width, config.mlp_width, f"{theirs}/{SCANNED}"
    for number in range(layers):
        block = f"{ours}.blocks.{number}"
        own = f"{stack}/attention"
        yield from _dense_rows(
            f"{block}.attention.qkv", [f"{own}/self/{n}" for n in ("query", "key", "value")], width, width, number
        )
        yield from _dense_rows(f"{block}.attention.out", [f"{own}/output/dense"], width, width, number)
        yield from _norm(f"{block}.attention_norm", f"{own}/output/LayerNorm", width, number)
        if context_width is not None:
            cross = f"{stack}/crossattention"
            yield from _dense_rows(f"{block}.cross_attention.query", [f"{cross}/self/query"], width, width, number)
            kv = [f"{cross}/self/{n}" for n in ("key", "value")]
            yield from _dense_rows(f"{block}.cross_attention.kv", kv, context_width, width, number)
            yield from _dense_rows(f"{block}.cross_attention.out", [f"{cross}/output/dense"], width, width, number)
            yield from _norm(f"{block}.cross_attention_norm", f"{cross}/output/LayerNorm", width, number)
        yield from _dense_rows(f"{block}.mlp_in", [f"{stack}/intermediate/dense"], width, mlp_width, number)
        yield from _dense_rows(f"{block}.mlp_out", [f"{stack}/output/dense"], mlp_width, width, number)
        yield from _norm(f"{block}.mlp_norm", f"{stack}/output/LayerNorm", width, number)


def _table(ours: str, shape: Shape, theirs: str, their_shape: Shape, layer: int | None = None) -> Rule:
    return Rule(((ours, shape),), (Leaf(theirs, their_shape, layer=layer),))


def _norm(ours: str, theirs: str, width: int, layer: int | None = None) -> Iterator[Rule]:
    yield _table(f"{ours}.weight", (width,), f"{theirs}/scale", (width,), layer)
    yield _table(f"{ours}.bias", (width,), f"{theirs}/bias", (width,), layer)


def _dense(ours: str, theirs: str, in_features: int, out_features: int) -> Iterator[Rule]:
    yield from _dense_rows(ours, [theirs], in_features, out_features)


def _dense_rows(
    ours: str, theirs: Sequence[str], in_features: int, out_features: int, layer: int | None = None
) -> Iterator[Rule]:
    """One linear layer here from one or several Dense layers there, each of ``out_features``."""
    kernels = tuple(Leaf(f"{n}/kernel", (in_features, out_features), in_features, layer) for n in theirs)
    biases = tuple(Leaf(f"{n}/bias", (out_features,), layer=layer) for n in theirs)
    rows = out_features * len(theirs)
    yield Rule(((f"{ours}.weight", (rows, in_features)),), kernels)
    yield Rule(((f"{ours}.bias", (rows,)),), biases)
