"""A training that diverged is told by its settings, not written as NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.nn import Config
from nh2st_scverse.train.best import check_finite


def test_what_is_not_finite_is_told_with_the_settings_that_differ() -> None:
    fine = torch.zeros(4, 2)
    lost = fine.clone()
    lost[1, 0] = torch.inf
    lost[1, 1] = torch.nan
    check_finite({"loss": 1.0}, fine, Config(), 3)
    with pytest.raises(ValueError, match=r"in epoch 3: loss nan, .*the usual ones: give a lower lr than 0\.001"):
        check_finite({"mse": 1.0, "loss": float("nan")}, fine, Config(), 3)
    tuned = Config.preset(lr=0.5, temperature=0.01)
    told = r"1 of 4 .* not finite\. Found lr=0\.5 \(usually 0\.001\), temperature=0\.01 \(usually 0\.05\)"
    with pytest.raises(ValueError, match=told):
        check_finite({"loss": 1.0}, lost, tuned, 0)
    with pytest.raises(ValueError, match=r"Found lr=0\.5 \(usually 0\.0005\): give"):
        check_finite({}, lost, Config.preset("paper", lr=0.5), 0)


def test_a_training_that_diverges_leaves_the_object_as_it_was(
    sdata: SpatialData, encoder: Any, small: dict[str, Any]
) -> None:
    before = {name: list(getattr(sdata["table"], name)) for name in ("layers", "obsm", "var", "obs", "uns")}
    given = {"encoder": encoder, "n_genes": 5, "max_epochs": 8, "n_members": 1, "progress": False, **small}
    with pytest.raises(ValueError, match=r"Training diverged in epoch \d: .*weight_decay=1e\+06 \(usually 0\.01\)"):
        nh.tl.predict_expression(sdata, weight_decay=1e6, **given)
    for name, names in before.items():
        assert [n for n in getattr(sdata["table"], name) if n not in names and n != "nh2st_features"] == []
    with pytest.raises(ValueError, match="lr to be a number above 0"):
        nh.tl.predict_expression(sdata, lr=float("nan"), **given)


def test_weights_that_are_not_finite_are_told_when_a_model_predicts(
    sdata: SpatialData, encoder: Any, small: dict[str, Any]
) -> None:
    model = nh.tl.train(sdata, encoder=encoder, n_genes=5, max_epochs=1, n_members=1, progress=False, **small)
    with torch.no_grad():
        model.members[0].target_mean[0] = np.nan
    before = list(sdata["table"].layers)
    with pytest.raises(ValueError, match=r"A member of the model gives values for section .* that are not finite"):
        nh.tl.predict_expression(sdata, model=model, encoder=encoder, key_added="x", progress=False)
    assert list(sdata["table"].layers) == before
