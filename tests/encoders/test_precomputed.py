from __future__ import annotations

import json

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely import box
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh
from nh2st_scverse.encoders import Precomputed

SMALL = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2, "max_epochs": 4, "progress": False, "n_genes": 8}


@pytest.fixture
def sdata() -> SpatialData:
    """Two sections whose features are noise and the expression of four programs: what a perfect encoder would see."""
    made = nh.datasets.synthetic(width_um=1200, n_sections=2)
    table = made["table"]
    programs = json.loads(table.uns["synthetic"]["programs"])
    rng = np.random.default_rng(0)
    counts = table.to_df()
    seen = np.stack([np.log1p(counts[programs[p]].mean(axis=1)) for p in ("tumour", "stroma", "immune")], axis=1)
    table.obsm["X_uni"] = np.concatenate([seen, rng.normal(size=(len(seen), 5))], axis=1)
    return made


def predicted(sdata: SpatialData, **settings: object) -> np.ndarray:
    nh.tl.predict_expression(sdata, encoder="precomputed:X_uni", **SMALL | settings)
    return sdata["table"].layers["nh2st"][:, sdata["table"].var["nh2st"].to_numpy()]


def test_features_of_obsm_are_used_row_by_row(sdata: SpatialData) -> None:
    model = nh.tl.train(sdata, encoder=Precomputed("X_uni"), **SMALL)
    assert (model.encoder, model.encoder_dim) == ("precomputed:X_uni", 8)
    assert "nh2st_features" not in sdata["table"].obsm
    nh.tl.predict_expression(sdata, model=model, progress=False)  # the key is known from the model
    assert nh.tl.evaluate(sdata)["pearson"].max() > 0.6
    first = predicted(sdata)
    shuffled = sdata["table"][np.random.default_rng(0).permutation(sdata["table"].n_obs)].copy()
    names = sdata["table"].obs_names
    sdata.tables["table"] = shuffled
    again = pd.DataFrame(predicted(sdata), index=shuffled.obs_names).loc[names].to_numpy()
    assert np.corrcoef(first.ravel(), again.ravel())[0, 1] > 0.9  # the batches differ


def test_features_of_another_table_are_matched_by_spot(sdata: SpatialData) -> None:
    expected = predicted(sdata)
    table = sdata["table"]
    order = np.random.default_rng(0).permutation(table.n_obs)
    tiles = ad.AnnData(table.obsm["X_uni"][order], obs=table.obs.iloc[order][["region", "spot_id"]])
    attributes = {"region": list(sdata.shapes), "region_key": "region", "instance_key": "spot_id"}
    sdata.tables["uni_tiles"] = TableModel.parse(tiles.copy(), **attributes)
    sdata.tables["by_name"] = tiles.copy()
    for key in ("uni_tiles", "by_name"):
        model = nh.tl.train(sdata, encoder=f"precomputed:{key}", table_key="table", **SMALL)
        assert model.encoder == f"precomputed:{key}"
        nh.tl.predict_expression(sdata, encoder=f"precomputed:{key}", table_key="table", key_added="other", **SMALL)
        found = sdata["table"].layers["other"][:, sdata["table"].var["other"].to_numpy()]
        assert np.allclose(found, expected, atol=1e-5)


def test_a_slide_of_tiles_with_features_is_predicted(sdata: SpatialData) -> None:
    """As LazySlide leaves one: squares over the tissue, and a table of features that annotates them."""
    model = nh.tl.train(sdata, encoder="precomputed:X_uni", **SMALL)
    table, spots = sdata["table"], sdata.shapes["section_0_spots"]
    of_section = (table.obs["region"] == "section_0_spots").to_numpy()
    systems = get_transformation(spots, get_all=True)
    tiles = gpd.GeoDataFrame(
        {"tile_id": np.arange(len(spots))},
        geometry=[box(p.x - 40, p.y - 40, p.x + 40, p.y + 40) for p in spots.geometry],
    )
    obs = pd.DataFrame({"tile_id": np.arange(len(spots)), "library_id": pd.Categorical(["tiles"] * len(spots))})
    features = ad.AnnData(table.obsm["X_uni"][of_section], obs=obs.set_index(obs["tile_id"].astype(str).to_numpy()))
    slide = SpatialData(
        images={"wsi": sdata.images["section_0_image"]},
        shapes={"tiles": ShapesModel.parse(tiles, transformations=systems)},
        tables={
            "uni_tiles": TableModel.parse(features, region="tiles", region_key="library_id", instance_key="tile_id")
        },
    )
    with pytest.raises(ValueError, match=r"None of the 8 genes of the model.*table_added='predicted'"):
        nh.tl.predict_expression(slide, model=model, encoder="precomputed:uni_tiles", progress=False)
    nh.tl.predict_expression(
        slide, model=model, encoder="precomputed:uni_tiles", table_added="predicted", progress=False
    )
    nh.tl.predict_expression(sdata, model=model, progress=False)
    found = slide["predicted"]
    expected = table[of_section, found.var_names].layers["nh2st"]
    assert np.allclose(found.X, expected, atol=1e-4)  # of the same features at the same places
    assert set(found.obs["library_id"]) == {"tiles"}


def test_what_is_missing_is_told(sdata: SpatialData) -> None:
    with pytest.raises(KeyError, match=r"Expected features 'X_virchow' in \.obsm.*found \.obsm \[.*'X_uni'"):
        nh.tl.train(sdata, encoder="precomputed:X_virchow", **SMALL)
    sdata["table"].obsm["X_uni"][3, 2] = np.nan
    with pytest.raises(ValueError, match=r"found NaN or infinite ones for 1 of \d+ spots of 'section_0_spots'"):
        nh.tl.train(sdata, encoder="precomputed:X_uni", **SMALL)
    sdata.tables["by_name"] = ad.AnnData(np.ones((5, 3)), obs=sdata["table"].obs.iloc[:5][[]])
    with pytest.raises(ValueError, match=r"Table 'by_name' has no features for \d+ of \d+ spots of 'section_0_spots'"):
        nh.tl.train(sdata, encoder="precomputed:by_name", **SMALL)
    with pytest.raises(TypeError, match="looked up in the object"):
        Precomputed("X_uni")(np.zeros((1, 1, 1, 3), dtype=np.uint8))


def test_features_of_another_length_are_refused(sdata: SpatialData) -> None:
    model = nh.tl.train(sdata, encoder="precomputed:X_uni", **SMALL)
    sdata["table"].obsm["X_uni"] = sdata["table"].obsm["X_uni"][:, :5]
    with pytest.raises(ValueError, match=r"trained on 8 features \(precomputed:X_uni\), found 5"):
        nh.tl.predict_expression(sdata, model=model, progress=False)
    assert "nh2st" not in sdata["table"].layers
