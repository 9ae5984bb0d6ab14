"""The layouts by name, and which of them a directory has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from ....errors import InputError
from . import audiocaps, clotho, esc50, packed, tut2017, urbansound8k, vggsound
from .corpus import CaptionCorpus, Corpus, LabelCorpus

CaptionDataset = Literal["auto", "shards", "audiocaps", "clotho"]
LabelDataset = Literal["auto", "esc50", "urbansound8k", "tut2017", "vggsound"]

C = TypeVar("C", bound=Corpus)


@dataclass(frozen=True)
class Layout(Generic[C]):
    """How a dataset lies on disk: a path of which any is there says that a directory may be it."""

    markers: tuple[str, ...]
    read: Callable[[Path], C]

    def fits(self, directory: Path) -> bool:
        """Whether ``directory`` has one of the markers."""
        return any((directory / marker).is_file() for marker in self.markers)


CAPTIONED: dict[str, Layout[CaptionCorpus]] = {
    packed.NAME: Layout((packed.MARKER,), packed.read_packed),
    audiocaps.NAME: Layout((audiocaps.MARKER,), audiocaps.read_audiocaps),
    clotho.NAME: Layout((clotho.MARKER,), clotho.read_clotho),
}
LABELLED: dict[str, Layout[LabelCorpus]] = {
    esc50.NAME: Layout((esc50.MARKER,), esc50.read_esc50),
    urbansound8k.NAME: Layout((urbansound8k.MARKER,), urbansound8k.read_urbansound8k),
    tut2017.NAME: Layout(tut2017.MARKERS, tut2017.read_tut2017),
    vggsound.NAME: Layout((vggsound.MARKER,), vggsound.read_vggsound),
}


def read_captioned(directory: Path, dataset: CaptionDataset = "auto") -> CaptionCorpus:
    """Read a dataset with captions; `auto` takes the layout that ``directory`` has, and raises InputError for none."""
    return _read(CAPTIONED, directory, dataset)


def read_labelled(directory: Path, dataset: LabelDataset = "auto") -> LabelCorpus:
    """Read a dataset with labels; `auto` takes the layout that ``directory`` has, and raises InputError for none."""
    return _read(LABELLED, directory, dataset)


def _read(layouts: Mapping[str, Layout[C]], directory: Path, dataset: str) -> C:
    if dataset != "auto":
        return layouts[dataset].read(directory)
    fitting = [name for name, layout in layouts.items() if layout.fits(directory)]
    if len(fitting) != 1:
        looked_for = "; ".join(f"{' or '.join(layout.markers)} ({name})" for name, layout in layouts.items())
        found = f"may be {' or '.join(fitting)}, say which with --dataset" if fitting else "has no layout known here"
        raise InputError(f"{directory}: {found}; looked for {looked_for}")
    return layouts[fitting[0]].read(directory)
