"""The authors' JAX parameters to and from this project's state dicts."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .authors_tree import AUDIO_LAYER, SCANNED, Leaf, Shape, Tree, authors_shapes, rules
from .config import MOST_LAYERS, AudioMAEConfig, AudioTextConfig, NetworkConfig, TextConfig, TransformerConfig
from .flax_file import Progress


def infer_config(tree: Tree, *, text_heads: int = 12, pool_heads: int = 8) -> NetworkConfig:
    """Read a network's sizes off the shapes of the authors' tree.

    Shapes do not tell ``text_heads`` and ``pool_heads``; the defaults are the paper's. Raises InputError where the tree
    is neither an AudioMAE's nor a Cacophony's, or its sizes do not fit each other.
    """
    if "AudioEncoder_0/Dense_0/kernel" in tree:
        return AudioMAEConfig(
            encoder=_audio_config(tree, "AudioEncoder_0"), decoder=_audio_config(tree, "AudioDecoder_0")
        )
    if "audio_module/Dense_0/kernel" not in tree:
        raise InputError(
            "the parameters are neither an AudioMAE's (AudioEncoder_0, AudioDecoder_0) nor a Cacophony's "
            f"(audio_module, text_module, ...); found {', '.join(sorted({path.split('/')[0] for path in tree})[:6])}"
        )
    text = f"text_module/{SCANNED}"
    vocabulary, width = _sizes(tree, "text_module/embeddings/word_embeddings/embedding", 2)
    if text_heads < 1 or width % (2 * text_heads):
        raise InputError(
            f"the text width {width} is not an even multiple of {text_heads} heads; say how many with --text-heads"
        )
    audio = _audio_config(tree, "audio_module")
    if pool_heads < 1 or audio.width % pool_heads:
        raise InputError(
            f"the audio width {audio.width} is not a multiple of {pool_heads} pooler heads; "
            "say how many with --pool-heads"
        )
    _, _, mlp_width = _sizes(tree, f"{text}/intermediate/dense/kernel", 3)
    return AudioTextConfig(
        audio=audio,
        text=TextConfig(
            width=width,
            layers=_num_layers(tree, text),
            heads=text_heads,
            mlp_width=mlp_width,
            vocab_size=vocabulary,
            max_positions=_sizes(tree, "text_module/embeddings/position_embeddings/embedding", 2)[0],
        ),
        caption_layers=_num_layers(tree, f"decoder_module/{SCANNED}"),
        pool_heads=pool_heads,
        projection_width=_sizes(tree, "text_proj/kernel", 2)[1],
    )


def from_authors(tree: Tree, config: NetworkConfig, progress: Progress | None = None) -> dict[str, Tensor]:
    """Return the state dict of ``config``'s network from the authors' tree, float32.

    ``progress`` is called with the number of parameters made and of all. Raises InputError that names the leaf that is
    missing, unexpected, of another shape, not of floating-point numbers or not finite.
    """
    _check(tree, authors_shapes(config))
    state: dict[str, Tensor] = {}
    todo = rules(config)
    for done, rule in enumerate(todo, 1):
        rows = _joined([_finite_rows(leaf, tree) for leaf in rule.leaves])
        for (name, shape), part in zip(rule.ours, _parts(rows, len(rule.ours)), strict=True):
            state[name] = torch.from_numpy(np.array(part, dtype=np.float32, order="C").reshape(shape))
        if progress is not None:
            progress(done, len(todo))
    return state


def to_authors(state: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, np.ndarray]:
    """Undo :func:`from_authors`: the authors' tree of a state dict, bit for bit, paths in sorted order."""
    tree: dict[str, np.ndarray] = {}
    scanned: dict[str, list[np.ndarray]] = {}
    for rule in rules(config):
        rows = _joined([state[name].detach().float().cpu().numpy() for name, _ in rule.ours])
        for leaf, part in zip(rule.leaves, _parts(rows, len(rule.leaves)), strict=True):
            if leaf.layer is None:
                tree[leaf.path] = np.array(leaf.restored(part), order="C")
            else:
                scanned.setdefault(leaf.path, []).append(leaf.restored(part))
    tree |= {path: np.stack(layers) for path, layers in scanned.items()}
    return dict(sorted(tree.items()))


def _finite_rows(leaf: Leaf, tree: Tree) -> np.ndarray:
    rows = leaf.rows(tree)
    if not np.isfinite(rows).all():
        raise InputError(f"leaf {leaf.path} holds NaN or infinity; the checkpoint is damaged")
    return rows


def _joined(rows: Sequence[np.ndarray]) -> np.ndarray:
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _parts(rows: np.ndarray, count: int) -> Sequence[np.ndarray]:
    return [rows] if count == 1 else np.split(rows, count)


def _sizes(tree: Tree, path: str, dimensions: int) -> Shape:
    if path not in tree:
        raise InputError(f"leaf {path} is missing: this is not a whole Cacophony or AudioMAE checkpoint")
    if tree[path].ndim != dimensions:
        raise InputError(f"leaf {path} has shape {tree[path].shape}, expected {dimensions} dimensions")
    return tree[path].shape


def _num_layers(tree: Tree, stack: str) -> int:
    path = f"{stack}/intermediate/dense/kernel"
    layers = _sizes(tree, path, 3)[0]
    if layers > MOST_LAYERS:
        raise InputError(f"leaf {path} has {layers} layers, expected at most {MOST_LAYERS}; the checkpoint is damaged")
    return layers


def _audio_config(tree: Tree, module: str) -> TransformerConfig:
    numbers = {int(found[1]) for path in tree if (found := re.match(rf"{module}/{AUDIO_LAYER}(\d+)/", path))}
    width, heads, _ = _sizes(tree, f"{module}/{AUDIO_LAYER}0/MultiHeadDotProductAttention_0/query/kernel", 3)
    _, mlp_width = _sizes(tree, f"{module}/{AUDIO_LAYER}0/MLP_0/Dense_0/kernel", 2)
    return TransformerConfig(width=width, layers=len(numbers), heads=heads, mlp_width=mlp_width)


def _check(tree: Tree, expected: Mapping[str, Shape]) -> None:
    missing = [path for path in expected if path not in tree]
    extra = [path for path in tree if path not in expected]
    for word, paths in (("missing", missing), ("unexpected", extra)):
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise InputError(f"leaf {paths[0]}{more}: {word}; expected a whole Cacophony or AudioMAE checkpoint")
    for path, shape in expected.items():
        if tree[path].shape != shape:
            raise InputError(f"leaf {path} has shape {tree[path].shape}, expected {shape} beside the other leaves")
        if tree[path].dtype.kind != "f":
            raise InputError(f"leaf {path} has dtype {tree[path].dtype}, expected floating-point parameters")
