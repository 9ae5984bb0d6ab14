"""Where the weights of a new run come from: another model, RoBERTa, or the seed; and a report of which came whence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..data.tokens import TOKENIZER_FILE
from ..errors import InputError
from ..json_file import write_json
from ..models.audio_mae import AudioMAE
from ..models.audio_text import AudioText
from ..models.layers import init_weights
from ..models.model_directory import MODEL_FILE, read_model
from ..models.roberta import read_roberta
from ..models.tensor_shapes import load_into
from .config import RANDOM_TEXT, ContrastiveRunConfig, MaeRunConfig

REPORT_FILE = "initialisation.json"


@dataclass(frozen=True)
class Origin:
    """Parameters that came from one place: their names, and how many numbers they are."""

    source: str
    names: list[str]
    size: int

    def summary(self, others: Sequence["Origin"]) -> str:
        """Return one line: the largest parts of the network that came from here whole, and their size."""
        elsewhere = [name for origin in others if origin is not self for name in origin.names]
        parts = dict.fromkeys(_whole_part(name, elsewhere) for name in self.names)
        return f"weights from {self.source}: {', '.join(parts)} ({self.size / 1e6:.2f} M)"


def initialise(
    model: AudioMAE | AudioText, config: MaeRunConfig | ContrastiveRunConfig, init: Path | None
) -> list[Origin]:
    """Give ``model`` its first weights; returns where every parameter's came from.

    All are drawn from the seed first. ``init``, a model directory, then gives its whole network where the stages are
    equal (but for a caption decoder that ``model`` lacks), and its audio encoder from stage 1 to stage 2.
    ``config.text_init`` gives the text encoder, unless ``init`` has one. Raises InputError where a source cannot be
    read or has other sizes, or ``config.audio_init`` refuses it.
    """
    if init is not None and isinstance(config, ContrastiveRunConfig) and config.audio_init == "random":
        raise InputError(
            f"audio_init is random, but --init {init} would fill the audio encoder; leave --init out, or set "
            "audio_init to init"
        )
    init_weights(model, config.seed)
    source_of = {name: f"seed {config.seed} (random)" for name, _ in model.named_parameters()}
    filled: dict[str, str] = {}  # prefix of the parts that were read to where they come from
    if init is not None:
        filled[_load_init(model, init)] = str(init)
    if isinstance(config, ContrastiveRunConfig) and config.text_init != RANDOM_TEXT and "" not in filled:
        assert isinstance(model, AudioText)
        state = read_roberta(config.text_init, config.model.text)
        load_into(model.text_encoder, state, Path(config.text_init))
        filled["text_encoder."] = config.text_init
    for prefix, source in filled.items():
        source_of |= {name: source for name in source_of if name.startswith(prefix)}
    return _origins(model, source_of)


def write_report(run: Path, origins: Sequence[Origin]) -> None:
    """Write the names of all parameters by origin into the run directory."""
    content = [{"source": o.source, "numbers": o.size, "parameters": o.names} for o in origins]
    write_json(run / REPORT_FILE, {"origins": content})


def tokenizer_spec(config: ContrastiveRunConfig, init: Path | None) -> str:
    """Return the tokenizer to resolve: "auto" takes that of the text weights, whose ids it must share.

    Raises InputError where the configuration asks for text weights and a tokenizer trained on other words.
    """
    spec = config.data.tokenizer
    weights = config.text_init
    if init is not None and (init / TOKENIZER_FILE).is_file():
        weights = str(init)
    if weights == RANDOM_TEXT:
        return spec
    if spec == "train":
        raise InputError(
            f"data.tokenizer is train, but the text encoder starts from {weights}, whose word embeddings belong to its "
            "own tokenizer; set data.tokenizer to auto, or text_init to random"
        )
    return weights if spec == "auto" else spec


def _load_init(model: AudioMAE | AudioText, init: Path) -> str:
    """Copy what ``init`` has for ``model``; returns the prefix of the parameters it gave."""
    expected = "a model directory (a run of `cacophony train`, or what `cacophony convert` wrote)"
    if not (init / MODEL_FILE).is_file():
        raise InputError(f"{init}: holds no model; --init expects {expected}")
    source, file = read_model(init), init / MODEL_FILE
    if type(source) is type(model):
        state = source.state_dict()
        if isinstance(model, AudioText) and not model.config.caption_layers:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("caption_decoder.")}
        load_into(model, state, file)
        return ""
    if isinstance(model, AudioMAE):
        raise InputError(f"{init}: is an audio-text model; stage 1 starts from a stage-1 model or from none")
    assert isinstance(source, AudioMAE)
    load_into(model.audio_encoder, source.encoder.state_dict(), file)
    return "audio_encoder."


def _origins(model: nn.Module, source_of: dict[str, str]) -> list[Origin]:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    names: dict[str, list[str]] = {}
    for name, source in source_of.items():
        names.setdefault(source, []).append(name)
    return [Origin(source, group, sum(sizes[name] for name in group)) for source, group in names.items()]


def _whole_part(name: str, elsewhere: Sequence[str]) -> str:
    """Return the shortest dotted prefix of ``name`` that no parameter from elsewhere shares."""
    words = name.split(".")
    for count in range(1, len(words)):
        prefix = ".".join(words[:count])
        if not any(other.startswith(prefix + ".") for other in elsewhere):
            return prefix
    return name
