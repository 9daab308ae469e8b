from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata_io
from PIL import Image, ImageFilter
from scipy.spatial import cKDTree
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

import nh2st_scverse as nh
from nh2st_scverse._options import Elements
from nh2st_scverse.data.features import Sight, encode_section
from nh2st_scverse.data.patches import iter_patches
from nh2st_scverse.data.section import locate_sections


def read_mob(data_dir: Path, name: str, image: Any = None, shrink: int = 1) -> SpatialData:
    adata = ad.read_h5ad(data_dir / "mob" / f"MOB_{name}.h5ad")
    adata.obsm["spatial"] = adata.obsm["spatial"] / shrink
    image = data_dir / "mob" / f"MOB_{name}.jpg" if image is None else image
    resolution = 200 / adata.uns["px_per_200um"] * shrink
    return nh.io.from_anndata(adata, image, microns_per_pixel=resolution, spot_diameter=100)


def halved(pixels: np.ndarray) -> np.ndarray:
    height, width = (n // 2 * 2 for n in pixels.shape[:2])
    picture = Image.fromarray(pixels[:height, :width])
    return np.asarray(picture.resize((width // 2, height // 2), Image.Resampling.LANCZOS))


def test_half_the_resolution_gives_nearly_the_same_patches(data_dir: Path) -> None:
    with Image.open(data_dir / "mob" / "MOB_rep01.jpg") as picture:
        pixels = np.asarray(picture)
    found = []
    for image, shrink in ((pixels, 1), (halved(pixels), 2)):
        section = locate_sections(read_mob(data_dir, "rep01", image, shrink))[0]
        patches = np.zeros((section.n_spots, 27, 27, 3))  # what half the resolution still shows
        for which, cut in iter_patches(section.geometry, np.arange(section.n_spots), size_um=150.0, size_px=27):
            patches[which] = cut
        found.append(patches)

    def agreement(shift: tuple[int, int]) -> float:
        a, b = (x[:, 2:-2, 2:-2].reshape(len(x), -1) for x in (found[0], np.roll(found[1], shift, axis=(1, 2))))
        return float(np.median([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))

    assert agreement((0, 0)) > 0.95
    assert agreement((0, 0)) > 0.15 + max(agreement(shift) for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)))


def colon(data_dir: Path) -> SpatialData:
    adata = ad.read_h5ad(data_dir / "colon" / "colon_d0.h5ad")
    image, resolution = data_dir / "colon" / "colon_d0.jpg", 100 / adata.uns["px_per_100um"]
    return nh.io.from_anndata(adata, image, microns_per_pixel=resolution, spot_diameter=55)


@pytest.mark.parametrize(
    ("read", "spacing", "by_spot", "by_feature"),
    [
        (lambda path: nh.io.her2st(path / "her2st", "C2"), 200, (0.95, 0.98), (0.85, 0.93)),  # 0.7 µm per pixel
        (colon, 100, (0.95, 0.97), (0.85, 0.93)),  # 1.0
        (lambda path: read_mob(path, "rep01"), 200, (0.82, 0.85), (0.35, 0.55)),  # 2.8: at 5.5 no nuclei are seen
    ],
    ids=["her2st", "colon", "mob"],
)
def test_half_the_resolution_gives_nearly_the_same_features(
    data_dir: Path,
    read: Callable[[Path], SpatialData],
    spacing: float,
    by_spot: tuple[float, float],
    by_feature: tuple[float, float],
) -> None:
    full = read(data_dir)
    (key,) = full.images
    pixels = full.images[key]["scale0"]["image"].values.transpose(1, 2, 0)
    small = Image2DModel.parse(
        halved(pixels).transpose(2, 0, 1),
        dims=("c", "y", "x"),
        scale_factors=[2, 2],
        transformations={key.removesuffix("_image"): Scale([2, 2], axes=("x", "y"))},
    )
    half = SpatialData(images={key: small}, shapes=dict(full.shapes), tables=dict(full.tables))
    features = []
    resolution = locate_sections(full)[0].geometry.microns_per_pixel
    for sdata, known in ((full, resolution), (half, 2 * resolution)):
        section = locate_sections(sdata, Elements(microns_per_pixel=known))[0]
        assert section.spacing_um == pytest.approx(spacing, rel=0.01)
        section = section.take(np.linspace(0, section.n_spots - 1, 40).astype(int))
        features.append(
            encode_section(section, nh.encoders.get(), sight=Sight(0.75 * spacing, (1.0, 2.5)), progress=False).T
        )
    for field, a, b in zip(range(2), *(np.split(one, 2) for one in features), strict=True):  # (1280, 40) each
        spots = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]
        each = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True) if x.std() > 0 and y.std() > 0]
        assert np.median(spots) > by_spot[field]
        assert np.median(each) > by_feature[field]


def test_her2st_with_x_and_y_swapped_is_refused(data_dir: Path) -> None:
    sdata = nh.io.her2st(data_dir / "her2st", "C2")
    shapes = sdata.shapes["C2_spots"]
    shapes.geometry = [Point(p.y, p.x) for p in shapes.geometry]
    found = findings(sdata)
    assert found.loc["x and y", "status"] == "error"
    assert found.loc["x and y", "found"].startswith("x and y of the spots of 'C2_spots' look swapped")


def findings(sdata: SpatialData, **arguments: Any) -> pd.DataFrame:
    """Lines of the preflight by what they check; of an object with one section."""
    return nh.pp.check(sdata, **arguments).set_index("check")


def number(text: str) -> float:
    return float(re.search(r"[\d.]+", text)[0])


@pytest.mark.parametrize("section", ["C2", "C3", "C4", "C5"])
def test_her2st_passes_the_checks(data_dir: Path, section: str) -> None:
    found = findings(nh.io.her2st(data_dir / "her2st", section))
    assert (found["status"] == "ok").all()
    assert number(found.loc["µm per pixel", "found"]) == pytest.approx(0.69, abs=0.01)
    assert number(found.loc["patch", "found"]) == pytest.approx(150, rel=0.02)
    assert number(found.loc["x and y", "found"]) > 85  # black and ink are no tissue


@pytest.mark.parametrize("name", ["rep01", "rep02", "rep04", "rep09"])
def test_mob_passes_the_checks(data_dir: Path, name: str) -> None:
    found = findings(read_mob(data_dir, name))
    assert not (found["status"] == "error").any()
    assert (found.loc[["focus", "stain"], "status"] == "ok").all()
    apart = re.search(r"([\d.]+) µm apart", found.loc["spots", "found"])
    assert apart and float(apart[1]) == pytest.approx(200, rel=0.02)
    assert number(found.loc["x and y", "found"]) > 85


def test_colon_passes_the_checks(data_dir: Path) -> None:
    found = findings(colon(data_dir))
    assert (found["status"] == "ok").all()
    assert re.search(r"100\.\d µm apart, hexagonal", found.loc["spots", "found"])
    assert number(found.loc["patch", "found"]) == pytest.approx(75, rel=0.02)


@pytest.mark.parametrize("tissue", ["colon", "mob"])
def test_blurred_and_washed_out_copies_are_warned_of(data_dir: Path, tissue: str) -> None:
    path = next((data_dir / tissue).glob("*.h5ad"))
    adata = ad.read_h5ad(path)
    resolution = 100 / adata.uns["px_per_100um"] if tissue == "colon" else 200 / adata.uns["px_per_200um"]
    with Image.open(path.with_suffix(".jpg")) as picture:
        blurred = picture.filter(ImageFilter.GaussianBlur(max(4 / resolution, 2.0)))
        washed = picture.point(lambda value: 255 - (255 - value) // 2)
    for image, check in ((blurred, "focus"), (washed, "stain")):
        sdata = nh.io.from_anndata(adata, np.asarray(image), microns_per_pixel=resolution, spot_diameter=55)
        found = findings(sdata)["status"]
        assert list(found.index[found == "warning"].intersection(["focus", "stain"])) == [check]


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_visium_passes_the_checks_when_told_that_it_is_coarse(data_dir: Path) -> None:
    for path in sorted((data_dir / "visium_ffpe").glob("*/*")):
        sdata = spatialdata_io.visium(path, dataset_id=path.name)
        found = findings(sdata)
        assert list(found.index[found["status"] == "error"]) == ["patch"]
        assert re.search("is too coarse.*at least 32 px", found.loc["patch", "found"])
        assert "fullres_image_file" in found.loc["patch", "remedy"]
        assert found.loc["full resolution", "status"] == "warning"
        told = findings(sdata, allow="coarse")
        assert not (told["status"] == "error").any()
        assert (told.loc[["focus", "stain"], "status"] == "ok").all()
        assert number(told.loc["µm per pixel", "found"]) == pytest.approx(4.2, rel=0.02)
        assert told.loc["image", "found"].startswith(f"'{path.name}_hires_image'")
        assert "spots outside" not in told.index


class Colours:
    """Mean and spread of colours on a 3 x 3 grid: quick."""

    name, input_size, dim, weights_hash = "colours", 96, 54, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        cells = patches.reshape(len(patches), 3, 32, 3, 32, 3).astype(np.float32) / 255
        return np.concatenate([f(cells, axis=(2, 4)).reshape(len(patches), 27) for f in (np.mean, np.std)], axis=1)


def quick(**more: Any) -> dict[str, Any]:
    small = {"embedding": 32, "hidden": 32, "bottleneck": 32, "n_members": 1, "max_epochs": 2, "fields": (1.0,)}
    return {"encoder": Colours(), "n_genes": 30, "progress": False, **small, **more}


@pytest.mark.slow
def test_a_slide_without_its_spots_is_predicted_as_with_them(data_dir: Path) -> None:
    trained_on = [nh.io.her2st(data_dir / "her2st", name) for name in ("C2", "C4")]
    model = nh.tl.train(trained_on, **quick(genes="highest_mean"))
    section = nh.io.her2st(data_dir / "her2st", "C5")
    slide = SpatialData(images=dict(section.images))
    nh.pp.grid(slide, spacing_um=model.spacing_um / 5, shape="square")  # as the spots of legacy ST are
    for sdata in (section, slide):
        nh.tl.predict_expression(sdata, model=model, encoder=Colours(), progress=False)
    spots, places = section.tables["table"], slide.tables["table"]
    assert model.spacing_um == pytest.approx(200, rel=0.02)
    distance, nearest = cKDTree(places.obsm["spatial"]).query(spots.obsm["spatial"])
    near = distance * 0.69 < 25  # µm
    assert near.mean() > 0.85  # the grid covers the tissue
    a, b = spots[near, model.genes].layers["nh2st"], places.X[nearest[near]]
    assert np.median([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]) > 0.85


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("tissue", ["mousebrain", "kidneyorganoid"])
def test_coarse_visium_sections_are_trained_on_and_predicted_in_microns(data_dir: Path, tissue: str) -> None:
    first, second = sorted((data_dir / "visium_ffpe" / tissue).glob("*"))[:2]
    model = nh.tl.train(spatialdata_io.visium(first, dataset_id="first"), **quick(allow="coarse"))
    assert (model.patch_um, model.spacing_um) == (pytest.approx(75, rel=0.02), pytest.approx(100, rel=0.02))
    sdata = spatialdata_io.visium(second, dataset_id="second")
    slide = SpatialData(images={"hires": sdata.images["second_hires_image"]})
    nh.tl.predict_expression(sdata, model=model, encoder=Colours(), allow="coarse", progress=False)
    nh.tl.predict_expression(
        slide, model=model, encoder=Colours(), allow="coarse", microns_per_pixel=4.2, progress=False
    )
    n_spots, n_places = sdata.tables["table"].n_obs, slide.tables["table"].n_obs
    assert 0.8 < n_places / n_spots < 1.25  # the same tissue at the same spacing


@pytest.mark.slow
def test_colon_is_cross_fitted_and_trains_a_model(data_dir: Path) -> None:
    sdata = colon(data_dir)
    nh.tl.predict_expression(sdata, **quick())
    table = sdata.tables["table"]
    assert table.uns["nh2st"]["patch_um"] == pytest.approx(75, rel=0.02)
    assert table.var["nh2st_pearson"].mean() > 0.05  # of colours alone
    model = nh.tl.train(sdata, **quick())
    assert (model.patch_um, model.spacing_um) == (pytest.approx(75, rel=0.02), pytest.approx(100, rel=0.02))
    slide = SpatialData(images=dict(sdata.images))
    nh.tl.predict_expression(slide, model=model, encoder=Colours(), progress=False)
    assert 0.8 < slide.tables["table"].n_obs / table.n_obs < 1.25  # the same tissue at the same spacing
