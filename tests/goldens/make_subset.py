"""Make the golden files here from the full golden vectors: ``python -m tests.goldens.make_subset GOLDENS [--whole]``.

GOLDENS is a directory with the files the README beside this script names. ``--whole`` keeps every entry instead of a
sample, some 25 MB: the same tests then hold all of the goldens, once, before the sample is committed.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from .sampling import Places, Tree, summaries
from .support import authors_tree

Arrays = dict[str, np.ndarray]

HERE = Path(__file__).parent
CHECKPOINTS = ("Cacophony_small", "AudioMAE_small_orbax_aggregate", "chunked_leaf_example")
WHOLE_CLIPS = ("silence", "short03", "edge2401")
EVERY_FRAME_UP_TO, FRAMES = 30, 8  # of the other clips, unless they have no more than the first number
OUTPUT_ENTRIES, PARAMETER_ENTRIES = (1200, 50), (32, 10)  # of an array: evenly spaced ones, largest ones


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Make the golden files from the full golden vectors.")
    parser.add_argument("goldens", type=Path, help="directory with the full golden vectors")
    parser.add_argument("--whole", action="store_true", help="keep every entry")
    arguments = parser.parse_args()
    source, whole = arguments.goldens, arguments.whole

    for name in CHECKPOINTS:
        shutil.copyfile(source / "ckpt" / f"{name}.ckpt", HERE / f"{name}.ckpt")
    clips(_load(source / "frontend" / "frontend.npz"))
    _save("front_end", front_end(_load(source / "frontend" / "frontend.npz"), whole))
    mae, mae_gradients = _load(source / "audiomae_small.npz"), _load(source / "audiomae_small_grads.npz")
    _check_parameters("AudioMAE_small_orbax_aggregate", mae)
    _save("audio_mae", audio_mae(mae, mae_gradients, whole))
    _save("audio_mae_gradients", audio_mae_gradients(mae_gradients, whole))
    caco = _load(source / "caco_small.npz")
    _check_parameters("Cacophony_small", caco)
    _save("audio_text", audio_text(caco, whole))
    _save("audio_text_gradients", audio_text_gradients(_load(source / "caco_small_grads.npz"), whole))
    _save("micro_ops", micro_ops(_load(source / "micro_ops.npz"), whole))


def clips(golden: Arrays) -> None:
    """Write the twelve waves as FLAC, which keeps int16 samples as they are."""
    (HERE / "clips").mkdir(exist_ok=True)
    for name in golden["clip_names"]:
        wave, path = golden[f"{name}/wave_i16"], HERE / "clips" / f"{name}.flac"
        assert np.array_equal(golden[f"{name}/wave_f32"], wave.astype(np.float32) / 32768)
        soundfile.write(path, wave, 16_000, subtype="PCM_16", compression_level=1.0)
        assert np.array_equal(soundfile.read(path, dtype="int16")[0], wave)


def front_end(golden: Arrays, whole: bool) -> Arrays:
    """Log-mel of some frames and the mean of every frame, patch indices of all clips, patches of three."""
    names = [str(name) for name in golden["clip_names"]]
    out = {name: golden[name] for name in ("clip_names", "mel_matrix", "mel_matrix_f64", "hann_window")}
    for kind in ("time_inds", "freq_inds", "mask"):
        out[f"patch_{kind}"] = np.stack([golden[f"{name}/audio_{kind}"] for name in names]).astype(np.int16)
    out["long10p6/keep_inds"] = golden["long10p6/keep_inds"]
    for name in names:
        frames = len(golden[f"{name}/logmel"])
        every = whole or frames <= EVERY_FRAME_UP_TO or name in WHOLE_CLIPS
        kept = np.arange(frames) if every else np.linspace(0, frames - 1, FRAMES).round().astype(np.int32)
        out[f"{name}/frames"] = kept
        for kind in ("logmel", "logmel_f64"):
            out[f"{name}/{kind}"] = golden[f"{name}/{kind}"][kept]
        means = golden[f"{name}/logmel_f64"].mean(axis=1, dtype=np.float64)
        out[f"{name}/frame_means_f64"] = means.astype(np.float32)
        if whole or name in WHOLE_CLIPS:
            out[f"{name}/patches"] = golden[f"{name}/audio_patches"][golden[f"{name}/audio_mask"] == 1]
    out["sweep/magnitude"] = golden["sweep/magnitude"][out["sweep/frames"]]
    return out


def audio_mae(golden: Arrays, gradients: Arrays, whole: bool) -> Arrays:
    """Inputs without padding, outputs of encoder and decoder with it and without, normalised targets."""
    visible, restore = golden["in/mask"] == 1, golden["in/restore_mask"] == 1
    every = np.concatenate((visible, restore), axis=1)
    assert np.array_equal(every, gradients["mask/allvalid"] == 1)
    out = {"visible/lengths": visible.sum(1), "restore/lengths": restore.sum(1)}
    for side, prefix, values, mask in (
        ("visible", "", golden["in/x"], visible),
        ("restore", "restore_", golden["in/restore_target_patches"], restore),
    ):
        out[f"{side}/values"] = values[mask]
        assert not values[~mask].any()
        for axis in ("time", "freq"):
            out[f"{side}/{axis}"] = golden[f"in/{prefix}{axis}_inds"][mask]
    outputs = {"encoder": golden["out/encoder"], "decoder": golden["out/decoder"]}
    fully_masked = golden["out/encoder_fully_masked_zero_input"]
    assert (fully_masked == fully_masked[:, :1]).all()
    out["fully_masked_slot"] = fully_masked[0, 0]
    out |= _sampled_outputs("padded", outputs, whole)
    valid = {"encoder": outputs["encoder"][visible], "decoder": outputs["decoder"][every]}
    out |= _sampled_outputs("valid", valid, whole)
    targets = {name: gradients[f"target/{name}"][every] for name in ("unbiased", "biased")}
    return out | _sampled_outputs("targets", targets, whole)


def audio_mae_gradients(golden: Arrays, whole: bool) -> Arrays:
    """Losses and the gradient of every parameter, four variants."""
    variants = [f"{variance}_{patches}" for variance in ("unbiased", "biased") for patches in ("masked", "allvalid")]
    out = {f"{variant}/loss": golden[f"loss/{variant}"] for variant in variants}
    return out | _sampled_parameters({variant: _below(golden, f"grad/{variant}/") for variant in variants}, whole)


def audio_text(golden: Arrays, whole: bool) -> Arrays:
    """Inputs without padding; embeddings, hidden states and logits; decoding; embeddings of eight clips."""
    audio, text = golden["in/audio_mask"] == 1, golden["in/text_mask"] == 1
    assert not golden["in/audio_patches"][~audio].any()
    assert (golden["in/text_input_ids"][~text] == 1).all()
    out = {
        "audio/lengths": audio.sum(1),
        "audio/values": golden["in/audio_patches"][audio],
        "audio/time": golden["in/audio_time_inds"][audio],
        "audio/freq": golden["in/audio_freq_inds"][audio],
        "text/lengths": text.sum(1),
        "text/token_ids": golden["in/text_input_ids"][text],
    }
    out |= {name: golden[name] for name in golden if name.startswith(("e2e/", "out/audio_e", "out/text_e"))}
    whole_arrays = ("out/exp_logit_scale", "decode/tokens_greedy", "decode/tokens_T0.01", "decode/live_steps")
    out |= {name: golden[name] for name in whole_arrays}
    states = {
        "audio_hidden": golden["out/audio_hidden"],
        "text_hidden": golden["out/text_hidden"],
        "decoder_logits": golden["out/decoder_logits"],
    }
    masks = {"audio_hidden": audio, "text_hidden": text, "decoder_logits": text}
    out |= _sampled_outputs("padded", states, whole)
    out |= _sampled_outputs("valid", {name: state[masks[name]] for name, state in states.items()}, whole)
    live = golden["decode/step_logits"][golden["decode/live_steps"]]
    return out | _sampled_outputs("live_steps", {"logits": live}, whole, entries=(2400, 50))


def audio_text_gradients(golden: Arrays, whole: bool) -> Arrays:
    """Losses, norms, three gradients and four updates of every parameter."""
    trees = {
        variant: _below(golden, f"{variant}/")
        for variant in (
            "percaption/grad",
            "percaption/grad_perturbed",
            "tokenmean/grad",
            "percaption/params_after_sam_adamw_step1",
            "percaption/params_after_sam_adamw_step2",
            "percaption/params_after_plain_adamw_step1",
            "tokenmean/params_after_sam_adamw_step1",
        )
    }
    scalars = {name: array for name, array in golden.items() if array.ndim == 0 and not name.endswith("/logit_scale")}
    tables = {name: golden[name] for name in ("aux/token_nll", "aux/contrastive_logits_audio_rows")}
    return scalars | tables | _sampled_parameters(trees, whole)


def micro_ops(golden: Arrays, whole: bool) -> Arrays:
    """Everything, but of the wider sin/cos embedding every eighth column."""
    return golden if whole else golden | {"sincos/out_768": golden["sincos/out_768"][:, ::8]}


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _check_parameters(checkpoint: str, golden: Arrays) -> None:
    """The vectors were computed with the parameters of the checkpoint file, which are not stored twice."""
    expected, found = _below(golden, "params/"), authors_tree(checkpoint)
    assert sorted(expected) == sorted(found)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def _save(name: str, arrays: Arrays) -> None:
    np.savez_compressed(HERE / f"{name}.npz", **arrays)  # pyright: ignore[reportArgumentType] # NumPy's own options


def _below(arrays: Arrays, prefix: str) -> Tree:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _sampled_outputs(group: str, tree: Tree, whole: bool, entries: tuple[int, int] = OUTPUT_ENTRIES) -> Arrays:
    places = Places.all(tree) if whole else Places.choose(tree, *entries)
    return _stored(group, places) | _sampled(group, tree, places)


def _sampled_parameters(trees: Mapping[str, Tree], whole: bool) -> Arrays:
    """Sample trees of all parameters where the first says."""
    first = next(iter(trees.values()))
    places = Places.all(first) if whole else Places.choose(first, *PARAMETER_ENTRIES)
    out = _stored("parameters", places)
    for variant, tree in trees.items():
        out |= _sampled(f"parameters/{variant}", tree, places)
    return out


def _stored(group: str, places: Places) -> Arrays:
    return {f"{group}/places/{name}": array for name, array in places.arrays().items()}


def _sampled(prefix: str, tree: Tree, places: Places) -> Arrays:
    values = np.concatenate(list(places.take(tree).values()))
    return {f"{prefix}/values": values, f"{prefix}/summaries": summaries(tree)}


if __name__ == "__main__":
    main()
