"""Embeddings on a plane."""

import numpy as np
import pytest
from cacophony.engine.projection import principal_plane, umap_plane
from cacophony.errors import InputError
from numba.core import config


def test_principal_components_keep_what_lies_in_a_plane():
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(20, 2)) * [3.0, 1.0]
    turned, _ = np.linalg.qr(generator.normal(size=(8, 8)))
    plane = principal_plane(flat @ turned[:2] + 5.0)
    distances = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (flat, plane.points)]
    np.testing.assert_allclose(distances[1], distances[0], atol=1e-9)
    assert plane.axes[0].startswith("first component (")
    assert plane.points[:, 0].std() >= plane.points[:, 1].std()


def test_the_plane_does_not_flip():
    rows = np.random.default_rng(1).normal(size=(12, 5))
    again = rows + 1e-9 * np.random.default_rng(2).normal(size=(12, 5))
    np.testing.assert_allclose(principal_plane(again).points, principal_plane(rows).points, atol=1e-6)


def test_umap_keeps_neighbours_together_and_repeats_itself(monkeypatch: pytest.MonkeyPatch):
    # Compiled, umap takes a quarter of a minute to begin; so few rows need no compiler.
    monkeypatch.setattr(config, "DISABLE_JIT", True)
    pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    centres = np.repeat(np.eye(6)[:2], 12, axis=0)
    rows = centres + 0.05 * generator.normal(size=centres.shape)
    plane = umap_plane(rows)
    assert plane.axes == ("UMAP 1", "UMAP 2")
    assert np.isfinite(plane.points).all()
    means = plane.points[:12].mean(axis=0), plane.points[12:].mean(axis=0)
    nearer = [np.argmin([np.linalg.norm(point - mean) for mean in means]) for point in plane.points]
    assert nearer == [0] * 12 + [1] * 12
    np.testing.assert_array_equal(umap_plane(rows).points, plane.points)
    assert np.isfinite(umap_plane(rows[:4]).points).all()


def test_umap_of_hardly_anything_is_refused():
    with pytest.raises(InputError, match="3 embeddings; expected at least 4"):
        umap_plane(np.ones((3, 4)))
