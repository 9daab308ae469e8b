from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT

N_GENES = 20


def predicted_slide(images, shape: str) -> SpatialData:
    """What a prediction leaves on H&E slides: a grid on each, and a table whose X is the prediction."""
    slide = SpatialData(images=images)
    obs = []
    for i, image in enumerate(list(images)):
        nh.pp.grid(slide, image_key=image, spacing_um=60, shape=shape, key_added=f"slide_{i}_grid")
        circles = slide.shapes[f"slide_{i}_grid"]
        obs.append(pd.DataFrame({"region": f"slide_{i}_grid", "spot_id": circles.index, "x": circles.geometry.x}))
    places = pd.concat(obs, ignore_index=True).astype({"region": "category"})
    places.index = places.index.astype(str)
    x = places.pop("x").to_numpy(dtype=np.float32)[:, None] * np.linspace(1, 2, N_GENES, dtype=np.float32)
    table = AnnData(x, obs=places, var=pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)]))
    table.var["nh2st_pearson"] = np.linspace(0.8, -0.1, N_GENES)
    table.uns["nh2st"] = {"unit": LOG_UNIT}
    slide.tables["table"] = TableModel.parse(
        table, region=list(slide.shapes), region_key="region", instance_key="spot_id"
    )
    return slide


@pytest.fixture(scope="module")
def images() -> dict:
    return dict(nh.datasets.synthetic(n_sections=2, width_um=1200, microns_per_pixel=2).images)


@pytest.fixture(scope="module")
def slide(images) -> SpatialData:
    return predicted_slide({"section_0_image": images["section_0_image"]}, "hexagonal")


def drawn(ax) -> np.ndarray:
    return np.ma.masked_invalid(ax.images[-1].get_array()).compressed()


def test_the_cells_of_a_map_cover_the_grid(slide, tmp_path):
    table = slide["table"].copy()
    axes = nh.pl.slide_map(slide, ["GENE0", "GENE7"], save=tmp_path / "map", dpi=60, return_ax=True)
    assert axes.shape == (1, 3)
    assert [ax.get_title() for ax in axes[0]] == ["H&E", "GENE0  r = 0.80", "GENE7  r = 0.47"]
    values = drawn(axes[0, 1])
    assert set(np.unique(values)) == set(table[:, "GENE0"].X.ravel())  # every place is there, with its value
    left, right, bottom, top = axes[0, 1].images[-1].get_extent()
    height, width = axes[0, 1].images[-1].get_array().shape
    pixel = (right - left) / width * (bottom - top) / height  # µm²
    hexagon = np.sqrt(3) / 2 * 60**2
    assert values.size * pixel == pytest.approx(table.n_obs * hexagon, rel=0.05)
    assert [ax.child_axes[0].get_ylabel() for ax in axes[0, 1:]] == [LOG_UNIT] * 2
    assert [line.get_label() for line in axes[0, 0].lines] == ["scale bar"]
    assert (tmp_path / "map.png").stat().st_size > 0
    assert set(slide["table"].var) == set(table.var) and not slide["table"].layers


def test_square_cells_are_squares(images):
    slide = predicted_slide({"section_0_image": images["section_0_image"]}, "square")
    ax = nh.pl.slide_map(slide, "GENE0", image=False, return_ax=True)[0, 0]
    left, right, bottom, top = ax.images[-1].get_extent()
    shown = ~np.ma.getmaskarray(np.ma.masked_invalid(ax.images[-1].get_array()))
    covered = shown.mean() * (right - left) * (bottom - top)
    assert covered == pytest.approx(slide["table"].n_obs * 60**2, rel=0.05)


def test_twenty_genes_of_several_slides(images):
    slide = predicted_slide(images, "hexagonal")
    axes = nh.pl.slide_map(slide, list(slide["table"].var_names), return_ax=True)
    assert axes.shape == (2, 21)
    assert [ax.get_title() for ax in axes[:, 0]] == ["H&E  slide_0_grid", "H&E  slide_1_grid"]
    assert len(axes[0, 0].figure.axes) == 42  # no empty panel
    for column in range(1, 21):  # a gene has one scale
        assert axes[0, column].images[-1].get_clim() == axes[1, column].images[-1].get_clim()
    rows = {ax.get_subplotspec().rowspan.start for ax in axes[0]}
    assert len(rows) == 6  # of four panels
    one = nh.pl.slide_map(slide, shapes_key="slide_1_grid", image=False, return_ax=True)
    assert [ax.get_title() for ax in one[0]] == [
        f"GENE{i}  r = {slide['table'].var['nh2st_pearson'].iloc[i]:.2f}" for i in range(4)
    ]


def test_places_without_a_prediction_are_grey(slide):
    table = slide["table"]
    kept = table.X[3:9].copy()
    table.X[3:9] = np.nan
    ax = nh.pl.slide_map(slide, "GENE0", alpha=0.5, return_ax=True)[0, 1]
    table.X[3:9] = kept
    assert ax.get_xlabel() == "grey: not predicted"
    grey, shown = np.asarray(ax.images[-2].get_array()), np.ma.masked_invalid(ax.images[-1].get_array())
    there = grey[..., 3] > 0
    np.testing.assert_allclose(grey[there], np.tile([*[0x95 / 255] * 3, 0.5], (there.sum(), 1)))
    assert there.any() and np.ma.getmaskarray(shown)[there].all()
    assert ax.images[-1].get_alpha() == 0.5


def test_wrong_arguments(slide):
    with pytest.raises(ValueError, match="alpha to be above 0 and at most 1, found 2"):
        nh.pl.slide_map(slide, alpha=2)
    with pytest.raises(ValueError, match="alpha to be a number above 0, found 0"):
        nh.pl.slide_map(slide, alpha=0)
    with pytest.raises(ValueError, match="ncols to be a whole number above 0, found 0"):
        nh.pl.slide_map(slide, ncols=0)
    with pytest.raises(KeyError, match=r"Genes \['nonsense'\] are not in the table"):
        nh.pl.slide_map(slide, "nonsense")
    with pytest.raises(KeyError, match=r"key='other'.*nh\.tl\.predict_expression"):
        nh.pl.slide_map(slide, key="other")
    assert not plt.get_fignums()
