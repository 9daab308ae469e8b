from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from nh2st_scverse.nn import Config
from nh2st_scverse.nn.config import TYPES, Preset, Settings, settings_docs


def test_presets_differ_and_take_changes() -> None:
    default, paper = Config.preset(), Config.preset("paper", max_epochs=3)
    assert (default.name, default.context, default.fine_tune) == ("default", True, False)
    assert (paper.name, paper.context, paper.fine_tune, paper.max_epochs) == ("paper", False, True, 3)


@pytest.mark.parametrize("config", [Config(), Config.preset("paper"), Config.preset(fields=(1.0, 4.0), dropout=0.1)])
def test_json_and_back(config: Config) -> None:
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_ridges_of_models_saved_before_saw_no_spread() -> None:
    saved = Config.preset(spread=True).to_dict()
    assert Config.from_dict(saved).spread
    del saved["spread"]
    assert not Config.from_dict(saved).spread


def test_kernels_of_models_saved_before_had_no_metric() -> None:
    saved = Config().to_dict()
    assert Config.from_dict(saved).metric == 2
    del saved["metric"]
    assert Config.from_dict(saved).metric == 0


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
        ({"lr": -1}, "lr to be a number above 0 and at most 1, found -1"),
        ({"lr": float("nan")}, "lr to be a number above 0 and at most 1, found nan"),
        ({"lr": float("inf")}, "lr to be a number .*found inf"),
        ({"lr": 1e6}, "lr to be a number .*found 1000000"),
        ({"lr": "0.1"}, "lr to be a number .*found '0.1'"),
        ({"lr": None}, "lr to be a number .*found None"),
        ({"temperature": 0.0}, r"temperature to be a number of at least 0\.001, found 0\.0"),
        ({"temperature": -1}, "temperature to be a number"),
        ({"mse": -1}, "mse to be a number of at least 0, found -1"),
        ({"mse": True}, "mse to be a number of at least 0, found True"),
        ({"mse": 0, "pearson": 0}, "mse or pearson above 0"),
        ({"dropout": 1.0}, r"dropout to be a number of at least 0 and below 1, found 1\.0"),
        ({"context": "no"}, "context to be True or False, found 'no'"),
        ({"context": 1}, "context to be True or False, found 1"),
        ({"context": None}, "context to be True or False, found None"),
        ({"fine_tune": "no"}, "fine_tune to be True or False, found 'no'"),
        ({"fields": 2.5}, r"fields to be sides above 0.* found 2\.5"),
        ({"fields": "1.0"}, "fields to be sides above 0"),
        ({"fields": (1e-6,)}, r"fields to be sides above 0, between 0\.1 and 100 patches each, found \(1e-06,\)"),
        ({"fields": (True, 2.0)}, "fields to be sides above 0"),
        ({"fields": {1.0}}, "fields to be sides above 0"),  # in no order
        ({"n_components": 0}, "n_components to be a whole number of at least 1, found 0"),
        ({"n_components": True}, "n_components to be a whole number"),
        ({"n_members": 3.0}, r"n_members to be a whole number of at least 1, found 3\.0"),
        ({"embedding": "256"}, "embedding to be a whole number"),
        ({"orientations": True}, r"orientations to be one of \[1, 2, 4, 8\], found True"),
        ({"orientations": 3}, "orientations to be one of"),
        ({"stain": None}, "stain to be one of"),
        ({"stain": ["none"]}, "stain to be one of"),
        ({"mlp_ratio": 1e-4}, "mlp_ratio to leave a width"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Config.preset(**settings)


@pytest.mark.parametrize("name", list(TYPES))
def test_no_setting_takes_what_cannot_be(name: str) -> None:
    for value in (float("nan"), -1, "x", b"1", object(), [], (), {}, 1j, np.inf, np.zeros(3)):
        with pytest.raises(ValueError, match=f"Expected {name} to be"):
            Config.preset(**{name: value})


def test_scalars_of_other_libraries_become_plain() -> None:
    found = Config.preset(
        lr=np.float32(0.5), max_epochs=np.int64(4), context=np.bool_(False), fields=np.array([1, 2]), mse=1, heads=2
    )
    assert (found.lr, found.max_epochs, found.context, found.fields, found.mse) == (0.5, 4, False, (1.0, 2.0), 1.0)
    assert [type(v) for v in (found.lr, found.max_epochs, found.context, found.fields[0], found.mse)] == [
        float,
        int,
        bool,
        float,
        float,
    ]
    assert Config.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert Config.preset(stain=np.str_("reinhard"), fields=[1.0, 2.0]).stain == "reinhard"


def test_the_keywords_are_those_of_the_settings() -> None:
    assert get_type_hints(Settings) == TYPES
    assert list(get_type_hints(Settings)) == [name for name in Config.__dataclass_fields__ if name != "name"]
    assert get_args(Preset) == ("default", "paper")


def test_every_setting_is_explained_with_its_defaults() -> None:
    told = {line.split("``")[1]: line for line in settings_docs().splitlines()}
    assert list(told) == list(TYPES)
    assert 'lr`` (0.001, preset "paper" 0.0005, above 0 and at most 1): learning rate.' in told["lr"]
    assert "one of 'none', 'reinhard', 'macenko', 'vahadane'" in told["stain"]
    assert all(len(line.split(": ", 1)[1]) > 8 for line in told.values())


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(ValueError, match=r"Unknown settings \['max_epoch'\]\. .* Similar: \['max_epochs'"):
        Config.preset(max_epoch=3)


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
