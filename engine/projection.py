"""Embeddings on a plane, for pictures: principal components, or UMAP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..extras import require

Projection = Literal["umap", "pca"]

_NEIGHBOURS = 15
_SEED = 0


@dataclass(frozen=True)
class Plane:
    """Where rows lie, ``[N, 2]``, and what the two axes are."""

    points: NDArray[np.float64]
    axes: tuple[str, str]


def principal_plane(rows: NDArray[np.floating]) -> Plane:
    """Return rows ``[N, D]`` on their first two principal components, with each one's share of the variance."""
    centred = np.asarray(rows, np.float64)
    centred = centred - centred.mean(axis=0)
    left, scale, right = np.linalg.svd(centred, full_matrices=False)
    # The SVD leaves signs open: fixed, so that maps of successive epochs do not flip.
    signs = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(axis=1)])
    shares = scale[:2] ** 2 / max(np.sum(scale**2), 1e-30)
    names = (f"first component ({shares[0]:.0%} of variance)", f"second component ({shares[1]:.0%})")
    return Plane(left[:, :2] * scale[:2] * signs, names)


def umap_plane(rows: NDArray[np.floating]) -> Plane:
    """Return rows ``[N, D]`` laid out by UMAP on cosine distances, 15 neighbours, seed 0.

    Raises InputError where umap-learn is not installed or there are fewer than four rows.
    """
    if len(rows) < 4:
        raise InputError(f"UMAP of {len(rows)} embeddings; expected at least 4, or choose the projection pca")
    umap = require_umap()
    layout = umap.UMAP(
        n_components=2,
        n_neighbors=min(_NEIGHBOURS, len(rows) - 1),
        metric="cosine",
        init="random" if len(rows) < _NEIGHBOURS else "spectral",  # a spectral start needs more rows than dimensions
        random_state=_SEED,
        n_jobs=1,
    )
    return Plane(np.asarray(layout.fit_transform(np.asarray(rows, np.float32)), np.float64), ("UMAP 1", "UMAP 2"))


def require_umap() -> Any:
    """Import umap; raises InputError that names the extra where it is not installed."""
    return require("umap", "umap-learn", "the projection umap", extra="evaluate")


PROJECTIONS: dict[Projection, Callable[[NDArray[np.floating]], Plane]] = {"umap": umap_plane, "pca": principal_plane}
