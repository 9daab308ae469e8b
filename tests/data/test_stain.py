"""Stain normalisation: colours of a section become those of others, as squidpy computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import squidpy.experimental.im as sqim
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from xarray import DataArray, Dataset, DataTree

import nh2st_scverse as nh
from nh2st_scverse.data.patches import thumbnail
from nh2st_scverse.data.pixels import tissue_of
from nh2st_scverse.data.section import Section, locate_sections
from nh2st_scverse.data.stain import Restained, colour_map, fit_reference, recolour
from nh2st_scverse.tl import _setup
from nh2st_scverse.train.task import vary

METHODS = ["reinhard", "macenko", "vahadane"]
SMALL = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2, "max_epochs": 2, "progress": False, "n_genes": 8}


class Colours:
    """Mean and spread of the colours of a patch."""

    name, input_size, dim, weights_hash = "colours", 16, 6, "v1"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        scaled = patches / 255
        return np.concatenate([scaled.mean(axis=(1, 2)), scaled.std(axis=(1, 2))], axis=1)


@pytest.fixture(scope="module")
def sdata() -> SpatialData:
    """Sections of one tissue under different stains."""
    return nh.datasets.synthetic(width_um=1200, n_sections=3)


@pytest.fixture(scope="module")
def sections(sdata: SpatialData) -> list[Section]:
    return locate_sections(sdata)


def tissue_colour(section: Section, colours: np.ndarray | None = None) -> np.ndarray:
    picture = thumbnail(section.geometry)[0]
    mask = tissue_of(picture)
    return (picture if colours is None else recolour(picture, colours))[mask].mean(axis=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_of_colours_is_squidpys_normalisation(sections: list[Section], method: str) -> None:
    reference = fit_reference(sections[:1], method)
    assert reference["method"] == method
    picture = thumbnail(sections[1].geometry)[0]
    whole = SpatialData(
        images={"image": Image2DModel.parse(picture.transpose(2, 0, 1), dims=("c", "y", "x"))},
        labels={"image_tissue": Labels2DModel.parse(tissue_of(picture).astype(np.uint8), dims=("y", "x"))},
    )
    fitted = sqim.StainReference(**{k: v if k == "method" else np.array(v) for k, v in reference.items()})
    expected = sqim.normalize_stains(whole, "image", fitted, inplace=False, preserve_background=False)
    found = recolour(picture, colour_map(sections[1], reference))
    assert np.array_equal(found, expected.transpose("y", "x", "c").to_numpy())
    assert np.abs(found.astype(int) - picture).mean() > 1


def test_reinhard_brings_sections_to_the_colour_of_the_reference(sections: list[Section]) -> None:
    reference = fit_reference(sections[:1], "reinhard")
    wanted = tissue_colour(sections[0])
    for section in sections[1:]:
        before = np.abs(tissue_colour(section) - wanted).max()
        after = np.abs(tissue_colour(section, colour_map(section, reference)) - wanted).max()
        assert after < 0.5 * before
        assert after < 4


def test_the_reference_is_the_mean_of_the_sections(sections: list[Section]) -> None:
    single = [fit_reference([section], "reinhard")["mu"] for section in sections]
    assert np.allclose(fit_reference(sections, "reinhard")["mu"], np.mean(single, axis=0))
    matrix = np.array(fit_reference(sections, "macenko")["stain_matrix"])
    assert np.allclose(np.linalg.norm(matrix, axis=0), 1)


def test_an_encoder_sees_the_new_colours() -> None:
    negative = np.stack(np.meshgrid(*[np.arange(255, -1, -1, dtype=np.uint8)] * 3, indexing="ij"), axis=-1)
    patches = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    restained = Restained(Colours(), negative)
    assert np.array_equal(recolour(patches, negative), 255 - patches)
    assert np.allclose(restained(patches), Colours()(255 - patches))
    assert restained.weights_hash != Restained(Colours(), negative[::-1]).weights_hash


@pytest.fixture
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """New colours of every fourth value of red, green and blue, and of those beside it: in a 64th of the time."""
    normalise, values = sqim.normalize_stains, np.arange(0, 256, 4, dtype=np.uint8)

    def some(pictures: SpatialData, key: str, *how: Any, **named: Any) -> Any:
        few = np.stack(np.meshgrid(values, values, values, indexing="ij")).reshape(3, 512, 512)
        levels = [Image2DModel.parse(few, dims=("c", "y", "x")), pictures[key]["scale1"]["image"]]
        pictures.images[key] = DataTree.from_dict({f"scale{i}": Dataset({"image": x}) for i, x in enumerate(levels)})
        found = normalise(pictures, key, *how, **named).to_numpy().reshape(3, 64, 64, 64)
        every = found.repeat(4, axis=1).repeat(4, axis=2).repeat(4, axis=3)
        return DataArray(every.reshape(3, 4096, 4096), dims=("c", "y", "x"))

    monkeypatch.setattr(sqim, "normalize_stains", some)


@pytest.mark.usefixtures("_coarse")
def test_a_model_keeps_its_stain(tmp_path: Any) -> None:
    first, last = (nh.datasets.synthetic(width_um=1200, n_sections=2, seed=seed) for seed in (0, 5))
    model = nh.tl.train(first, encoder=Colours(), stain="reinhard", **SMALL)
    assert model.stain == fit_reference(locate_sections(first), "reinhard")
    loaded = nh.NH2ST.load(model.save(tmp_path / "model"))
    assert loaded.stain == model.stain
    nh.tl.predict_expression(last, model=loaded, encoder=Colours(), progress=False)
    features = last["table"].obsm["nh2st_features"]
    plain = nh.tl.train(last, encoder=Colours(), **SMALL)
    assert plain.stain is None
    assert np.abs(features[:, :3] - last["table"].obsm["nh2st_features"][:, :3]).mean() > 0.01
    wanted = first["table"].obsm["nh2st_features"][:, :3].mean(axis=0)
    assert np.abs(features[:, :3].mean(axis=0) - wanted).max() < 0.1


@pytest.mark.usefixtures("_coarse")
def test_held_out_sections_do_not_decide_the_colours(sections: list[Section], monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[list[str]] = []

    def look(some: list[Section], method: str) -> dict[str, Any]:
        fitted.append([section.name for section in some])
        return fit_reference(some, method)

    monkeypatch.setattr(_setup, "fit_reference", look)
    two = nh.datasets.synthetic(width_um=1200, n_sections=2)
    settings = SMALL | {"encoder": Colours(), "stain": "reinhard", "max_epochs": 1}
    nh.tl.predict_expression(two, **settings)
    assert fitted == [["section_1_spots"], ["section_0_spots"]]
    assert np.isfinite(two["table"].layers["nh2st"][:, two["table"].var["nh2st"].to_numpy()]).all()
    fitted.clear()
    scores = nh.tl.cross_validate(two, baselines=["mean"], **settings)
    assert fitted == [["section_1_spots"], ["section_0_spots"]]
    assert np.isfinite(scores.query("metric == 'mse'")["value"]).all()


def test_jitter_changes_the_density_of_each_colour() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 3, 4, 4) * 0.9 + 0.05
    assert vary(images, 0.0) is images
    found = vary(images, 0.1)
    factors = found.log() / images.log()
    assert torch.allclose(factors, factors[:, :, :1, :1].expand_as(factors), atol=1e-3)
    assert factors[:, :, 0, 0].std() == pytest.approx(0.1, rel=0.15)
    assert factors.mean() == pytest.approx(1, abs=0.02)
