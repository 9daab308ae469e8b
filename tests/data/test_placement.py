from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data import checks
from nh2st_scverse.data.geometry import spot_spacing
from nh2st_scverse.data.pixels import tissue_of
from nh2st_scverse.data.placement import MOST_SPOTS, Fit, components_of, fit


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix]:
    """Picture, places and counts of drawn tissue."""
    sdata = nh.datasets.synthetic(width_um=1600, seed=1)
    picture = np.asarray(sdata["section_0_image"]["scale1"]["image"].transpose("y", "x", "c").values)
    return picture, sdata["table"].obsm["spatial"] / 2, sdata["table"].X


def fitted(picture: np.ndarray, xy: np.ndarray, counts: sparse.csr_matrix, components: np.ndarray | None = None) -> Fit:
    chosen = np.unique(np.linspace(0, len(xy) - 1, MOST_SPOTS).astype(int))
    components = components_of(counts[chosen]) if components is None else components
    tissue = tissue_of(picture)
    return fit(picture, tissue, xy, components, chosen=chosen, spacing=spot_spacing(xy))


def wrong_places(xy: np.ndarray, size: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Places with a mistake, and what names it."""
    (x, y), (width, height), spacing = xy.T, size, spot_spacing(xy)
    return [
        ("x and y swapped", np.c_[y, x]),
        ("mirrored in x", np.c_[width - x, y]),
        ("mirrored in y", np.c_[x, height - y]),
        ("turned by a quarter", np.c_[y, width - x]),
        ("turned by a quarter", np.c_[height - y, x]),
        ("scaled by 0.8", xy * 0.8),
        ("scaled by 1.1", xy * 1.1),
        ("shifted by about 3 spots", xy + np.array([3 * spacing, 0])),
    ]


def test_right_places_are_quiet(drawn: tuple) -> None:
    assert not fitted(*drawn).misplaced


@pytest.mark.parametrize("which", range(8))
def test_drawn_tissue_names_the_mistake(drawn: tuple, which: int) -> None:
    picture, xy, counts = drawn
    cause, places = wrong_places(xy, np.array(picture.shape[1::-1]))[which]
    found = fitted(picture, places, counts)
    assert found.misplaced and found.cause == cause


def test_expression_of_nothing_names_no_mistake(drawn: tuple) -> None:
    picture, xy, counts = drawn
    shuffled = counts[np.random.default_rng(0).permutation(counts.shape[0])]
    found = fitted(picture, xy, shuffled)
    assert not found.misplaced and found.score < fitted(picture, xy, counts).score - 0.2


def real_sections(data_dir: Path) -> dict[str, SpatialData]:
    import spatialdata_io

    mob = ad.read_h5ad(data_dir / "mob" / "MOB_rep01.h5ad")
    colon = ad.read_h5ad(data_dir / "colon" / "colon_d0.h5ad")
    visium = data_dir / "visium_ffpe"
    brain, kidney = visium / "mousebrain" / "V10F24-078_D1", visium / "kidneyorganoid" / "V19D02-085_C1"
    return {
        "her2st": nh.io.her2st(data_dir / "her2st", "C2"),
        "mob": nh.io.from_anndata(
            mob,
            data_dir / "mob" / "MOB_rep01.jpg",
            microns_per_pixel=200 / mob.uns["px_per_200um"],
            spot_diameter=100,
        ),
        "colon": nh.io.from_anndata(
            colon,
            data_dir / "colon" / "colon_d0.jpg",
            microns_per_pixel=100 / colon.uns["px_per_100um"],
            spot_diameter=55,
        ),
        "brain": spatialdata_io.visium(brain, dataset_id="brain"),
        "kidney": spatialdata_io.visium(kidney, dataset_id="kidney"),
    }


def test_real_sections_name_the_mistakes_and_right_places_are_quiet(data_dir: Path) -> None:
    from nh2st_scverse.data.geometry import apply_affine, locate
    from nh2st_scverse.data.patches import thumbnail

    noticed, total = 0, 0
    for name, sdata in real_sections(data_dir).items():
        (shapes,) = sdata.shapes
        geometry, table = locate(sdata, shapes), sdata["table"]
        ids = table.obs[table.uns["spatialdata_attrs"]["instance_key"]]
        picture, level = thumbnail(geometry)
        every = max(1, max(picture.shape) // 1024)
        picture = picture[::every, ::every]
        xy = apply_affine(level.from_shapes, geometry.coordinates) / (level.size[0] / picture.shape[1])
        xy = xy[sdata.shapes[shapes].index.get_indexer(ids)]
        counts = sparse.csr_matrix(table.X)
        chosen = np.unique(np.linspace(0, len(xy) - 1, MOST_SPOTS).astype(int))
        components = components_of(counts[chosen])
        assert not fitted(picture, xy, counts, components).misplaced, name
        for cause, places in wrong_places(xy, np.array(picture.shape[1::-1])):
            found = fitted(picture, places, counts, components)
            noticed += found.misplaced and found.cause == cause
            total += 1
        for factor in (0.5, 2.0):  # µm per pixel
            pixels = geometry.pixels()
            spacing = spot_spacing(pixels) * geometry.microns_per_pixel * factor
            diameter = 0.5 * spacing if name in ("her2st", "mob") else 0.55 * spacing
            line = checks.spots(geometry, diameter_um=diameter, spacing_um=spacing)[-1]
            noticed += line.status == "warning" and f"µm per pixel is {factor:.2g} times" in line.found
            total += 1
    assert total == 50 and noticed >= 45
