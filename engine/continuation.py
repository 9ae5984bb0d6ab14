"""Continuing a run: which checkpoint all ranks take, and what is restored from it."""

from pathlib import Path

from ..data.loader import Loader
from ..errors import InputError
from ..models.model_directory import MODEL_FILE
from ..models.weights import load_tensors
from .build import AnyUpdater, Config
from .checkpoint import STATE_FILE, checkpoints, load_optimizer, load_state, newest_whole, set_aside
from .distributed import World
from .update import Counters


def choose_checkpoint(run: Path, world: World) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole, None where the run has none, and what to say about damaged ones.

    Rank 0 decides for all, and sets the damaged ones aside.
    """
    name, notes = "", list[str]()
    if world.is_main and checkpoints(run):
        chosen, damage = newest_whole(run)
        name = chosen.name
        notes = [f"{line}; set aside, and {name} taken instead" for line in damage]
        for newer in checkpoints(run):
            if newer.name > name:
                set_aside(newer)
    name = world.from_main("checkpoint", name)
    return (run / "checkpoints" / name if name else None), notes


def restore(checkpoint: Path, updater: AnyUpdater, loader: Loader, config: Config, *, allow_changed: bool) -> int:
    """Restore updater and loader; returns the steps done. ``allow_changed``: batch size and seed may be others.

    Raises InputError where something is damaged or does not fit.
    """
    state = load_state(checkpoint)
    updater.load_weights(load_tensors(checkpoint / MODEL_FILE), checkpoint / MODEL_FILE)
    updater.load_state_tensors(load_optimizer(checkpoint), checkpoint)
    try:
        updater.counters = Counters(int(state["skipped"]), int(state["skipped_in_a_row"]))
        now = {"batch_size": config.batch_size, "seed": config.seed} if allow_changed else {}
        loader.load_state_dict(state["loader"] | now)
        done = int(state["step"])
    except InputError as error:
        raise InputError(f"{checkpoint / STATE_FILE}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{checkpoint / STATE_FILE}: is damaged ({error!r}); delete this checkpoint to use an older one"
        ) from None
    if done > config.steps:
        raise InputError(f"{checkpoint}: {done} steps are done, and steps is {config.steps}; expected at least {done}")
    return done
