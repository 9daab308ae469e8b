from __future__ import annotations

import json
from typing import Any

import pytest

from nh2st_scverse.nn import Config


def test_presets_differ_and_take_changes() -> None:
    default, paper = Config.preset(), Config.preset("paper", max_epochs=3)
    assert (default.name, default.context, default.fine_tune) == ("default", True, False)
    assert (paper.name, paper.context, paper.fine_tune, paper.max_epochs) == ("paper", False, True, 3)


@pytest.mark.parametrize("config", [Config(), Config.preset("paper"), Config.preset(fields=(1.0, 4.0), dropout=0.1)])
def test_json_and_back(config: Config) -> None:
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_names_are_listed_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"one of \['default', 'paper'\], found 'papre'"):
        Config.preset("papre")
    with pytest.raises(ValueError, match=r"Unknown settings \['epochs'\]\. Available: .*'max_epochs'"):
        Config.preset(epochs=3)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"optimizer": "sgd"}, r"optimizer to be one of \['adamw', 'adam'\], found 'sgd'"),
        ({"library": "cell"}, "library to be one of"),
        ({"max_epochs": 0}, "max_epochs to be a whole number of at least 1, found 0"),
        ({"batch_size": 1}, "batch_size to be a whole number of at least 2"),
        ({"n_nodes": 9.5}, "n_nodes to be a whole number"),
        ({"ridge": 1.5}, "ridge to be between 0 and 1, found 1.5"),
        ({"fields": ()}, "fields to be sides above 0"),
        ({"fields": (1.0, -2.0)}, "fields to be sides above 0"),
        ({"embedding": 30, "heads": 4}, "heads to divide embedding, found 4 heads and 30"),
        ({"scale_target": False}, "scale_target=True or ridge=0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Config.preset(**settings)


@pytest.mark.parametrize(
    "settings", [{"ridge": 0.5}, {"standardise": "section"}, {"fields": (1.0, 2.0)}, {"orientations": 2}]
)
def test_a_trained_encoder_has_no_parts_for_given_features(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="A trained encoder has one field of view"):
        Config.preset("paper", scale_target=True, **settings)


def test_fine_tuning_changes_what_it_must() -> None:
    tuned = Config.preset(fine_tune=True, batch_size=16)
    assert (tuned.fields, tuned.standardise, tuned.ridge, tuned.batch_size) == ((1.0,), "none", 0.0, 16)
    assert tuned.n_components == Config.preset().n_components
    assert Config.preset("paper", fine_tune=True) == Config.preset("paper")
