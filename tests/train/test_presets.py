"""Both presets from a SpatialData object to predictions, and what the neighbourhood is worth."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh

TERMS = {"mse", "query_contrast", "neighbour_contrast", "loss", "validation_pearson"}


class Stains:
    """Optical density of the patch: mean, spread and eight quantiles of each colour."""

    name, input_size, dim, weights_hash = "stains", 24, 30, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        density = -np.log(np.clip(patches / 255, 1 / 255, 1)).reshape(len(patches), -1, 3)
        quantiles = np.quantile(density, np.linspace(0.05, 0.95, 8), axis=1).transpose(1, 0, 2)
        return np.concatenate([quantiles.reshape(len(patches), -1), density.mean(axis=1), density.std(axis=1)], axis=1)


def test_context_genes_need_the_neighbourhood() -> None:
    """Genes driven by the adjacent spots are predicted from the images around a spot, not from its own."""
    sdata = nh.datasets.synthetic(width_um=1500, n_sections=2)
    programs = json.loads(sdata["table"].uns["synthetic"]["programs"])
    genes = {"context": programs["context"], "tumour": programs["tumour"][:10]}
    sides = {"encoder": Stains(), "fields": (1.0,), "patch_um": 75.0}  # spots are 100 µm apart: a patch holds no other

    def mean_pearson(**settings: Any) -> dict[str, float]:
        panel = genes["context"] + genes["tumour"]
        small = {"embedding": 64, "hidden": 64, "bottleneck": 64, "n_members": 1}
        nh.tl.predict_expression(sdata, genes=panel, progress=False, **sides, **small, **settings)
        found = nh.tl.evaluate(sdata, n_splits=1)["pearson"]
        return {name: float(found[some].mean()) for name, some in genes.items()}

    without = mean_pearson(context=False, ridge=0.0)  # the ridge sees the neighbourhood too
    network = mean_pearson(context=True, ridge=0.0)
    whole = mean_pearson()
    assert network["context"] > without["context"] + 0.15
    assert whole["context"] > without["context"] + 0.15
    for score in (without, network, whole):
        assert score["tumour"] > 0.5  # the own image is enough for these


@pytest.fixture
def few(sdata: SpatialData) -> SpatialData:
    """25 spots in each of two sections."""
    table = sdata["table"]
    keep = np.concatenate([np.flatnonzero(table.obs["region"] == region)[30:55] for region in sdata.shapes])
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table[keep].copy()})


def test_paper_preset_trains_and_predicts_with_the_whole_resnet18(few: SpatialData, small: dict[str, Any]) -> None:
    options = {"limit_train_batches": 1}
    model = nh.tl.train(
        few, preset="paper", n_genes=10, max_epochs=1, n_members=1, progress=False, trainer_kwargs=options, **small
    )
    assert set(model.history) == TERMS | {"member", "held_out", "epoch"}
    assert np.isfinite(model.history[sorted(TERMS)].to_numpy()).all()
    assert model.members[0].network.query_projection.in_features == 512 * 7 * 7
    assert (model.unit, model.encoder) == ("log1p(1e4 of the panel), smoothed", "resnet18")

    measured = few["table"].X.copy()
    nh.tl.predict_expression(few, model=model, progress=False)
    table = few["table"]
    layer = table.layers["nh2st"]
    assert np.isfinite(layer[:, table.var["nh2st"]]).all()
    assert np.isnan(layer[:, ~table.var["nh2st"]]).all()
    assert set(table.var_names[table.var["nh2st"]]) == set(model.genes)
    assert (measured != table.X).nnz == 0
    with pytest.raises(ValueError, match=r"is in the unit 'log1p\(1e4 of the panel\), smoothed'"):
        nh.tl.evaluate(few)


def test_paper_preset_learns(few: SpatialData, small: dict[str, Any]) -> None:
    encoder = nh.encoders.ResNet18()
    encoder.input_size = 32  # px: quick
    settings = {"n_genes": 10, "max_epochs": 6, "lr": 0.005, "n_members": 1, **small}
    model = nh.tl.train(few, preset="paper", encoder=encoder, progress=False, **settings)
    mse = model.history["mse"].to_numpy()
    assert mse[-1] < 0.5 * mse[0]


def test_default_preset_trains_with_the_default_encoder(few: SpatialData, small: dict[str, Any]) -> None:
    model = nh.tl.train(few, n_genes=10, max_epochs=2, fields=(1.0,), progress=False, **small)
    assert model.encoder == nh.encoders.get().name
    assert np.isfinite(model.history[sorted({*TERMS, "pearson"})].to_numpy()).all()
    assert few["table"].obsm["nh2st_features"].shape == (50, nh.encoders.get().dim)
    nh.tl.predict_expression(few, model=model, progress=False)
    assert np.isfinite(nh.tl.evaluate(few)["mse"]).all()
