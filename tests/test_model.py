"""The trained model: what it holds, save and load, and models that earlier versions saved.

``python tests/test_model.py`` writes a model of the present format to ``tests/data_models``. Do that once when the
format changes, and keep the earlier ones: they must stay readable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data.neighbours import Neighbours
from nh2st_scverse.data.section import Section, locate_sections
from nh2st_scverse.model.card import Card
from nh2st_scverse.model.saved import FORMAT
from nh2st_scverse.train.likeness import apart

SAVED = Path(__file__).parent / "data_models"
FILES = ["history.csv", "model.json", "weights.safetensors"]
SMALL = {"embedding": 16, "hidden": 16, "bottleneck": 8, "heads": 2, "n_members": 2}


class Colours:
    """Mean and spread of the colours of a patch."""

    name, input_size, dim, weights_hash = "colours", 16, 6, "v1"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        scaled = patches / 255
        return np.concatenate([scaled.mean(axis=(1, 2)), scaled.std(axis=(1, 2))], axis=1)


def small_section() -> SpatialData:
    return nh.datasets.synthetic(width_um=1200, n_sections=2)


def train(sdata: SpatialData, **settings: Any) -> nh.NH2ST:
    given: dict[str, Any] = {"n_genes": 5, "encoder": Colours(), "max_epochs": 3, "progress": False}
    return nh.tl.train(sdata, **given | SMALL | settings)


@pytest.fixture(scope="module")
def sdata() -> SpatialData:
    return small_section()


@pytest.fixture(scope="module")
def model(sdata: SpatialData) -> nh.NH2ST:
    return train(sdata, groups=["1", "NA"])  # names that a CSV reader would take for something else


@pytest.fixture(scope="module")
def paper(sdata: SpatialData) -> nh.NH2ST:
    encoder = nh.encoders.ResNet18()
    encoder.input_size = 32  # px: quick
    options = {"limit_train_batches": 2}
    return train(sdata, preset="paper", encoder=encoder, max_epochs=1, n_members=1, trainer_kwargs=options)


def test_members_know_how_far_apart_held_out_tissue_is(model: nh.NH2ST, sdata: SpatialData) -> None:
    features = sdata["table"].obsm["nh2st_features"]
    held_out = model.history.groupby("member")["held_out"].first()
    assert len(set(held_out)) == 2
    for section in locate_sections(sdata):
        found = model._by_member(
            lambda member, spots: apart(member, spots, spots.trainable.nonzero()[:, 0]),
            section,
            features[section.rows],
            "cpu",
        )
        for name, member, value in zip(held_out, model.members, found, strict=True):
            known = name == {"section_0_spots": "1", "section_1_spots": "NA"}[section.name]
            assert 0 < member.apart < 0.3 and (abs(member.apart - value) < 1e-4) == known
    older = {name: value for name, value in member.state_dict().items() if name != "apart"}
    again = deepcopy(member)
    again.load_state_dict(older)
    assert again.apart == 0


@pytest.fixture
def folder(model: nh.NH2ST, tmp_path: Path) -> Path:
    return model.save(tmp_path / "model")


def predictions(model: nh.NH2ST, sdata: SpatialData) -> np.ndarray:
    nh.tl.predict_expression(sdata, model=model, encoder=Colours(), progress=False)
    table = sdata["table"]
    return table.layers["nh2st"][:, table.var["nh2st"].to_numpy()]


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


# ------------------------------------------------------------------------------------------------- what it holds


def test_history_has_a_row_for_each_member_and_epoch(model: nh.NH2ST) -> None:
    terms = ["mse", "pearson", "query_contrast", "neighbour_contrast", "loss"]
    assert list(model.history) == ["member", "held_out", "epoch", *terms, "validation_pearson"]
    assert model.history[["member", "epoch"]].to_numpy().tolist() == [[m, e] for m in (0, 1) for e in (0, 1, 2)]
    assert model.history.groupby("member")["held_out"].unique().tolist() == [["1"], ["NA"]]
    weighted = model.history["mse"] + model.history["pearson"] + model.history["query_contrast"]
    assert np.allclose(weighted + 0.5 * model.history["neighbour_contrast"], model.history["loss"], rtol=1e-4)


def test_scores_are_the_correlations_on_held_out_groups(model: nh.NH2ST, sdata: SpatialData) -> None:
    assert list(model.scores.index) == model.genes
    assert model.scores["pearson"].between(-1, 1).all()
    best = model.history.groupby("member")["validation_pearson"].max()
    assert float(model.scores["pearson"].mean()) == pytest.approx(best.mean(), abs=1e-5)


def test_what_a_model_says_of_itself(model: nh.NH2ST) -> None:
    said = repr(model)
    assert "NH2ST model, preset 'default': 5 genes" in said
    assert "trained on 2 section(s): section_0_spots, section_1_spots; 2 member(s)" in said
    assert "colours, patches of 75 µm" in said
    about = model.provenance()
    assert all(isinstance(value, str | int | float) for value in about.values())
    rest = json.loads(about["json"])
    assert rest["genes"] == model.genes
    assert rest["trained_on"] == {"section_0_spots": "1", "section_1_spots": "NA"}
    assert rest["config"]["embedding"] == 16
    assert {"nh2st-scverse", "torch", "numpy"} <= set(rest["packages"])


def test_what_it_was_made_from_is_read_on_the_model_and_cannot_be_set(model: nh.NH2ST) -> None:
    assert (model.unit, model.patch_um, model.encoder) == (model.card.unit, model.card.patch_um, "colours")
    assert {"unit", "trained_on", "residuals", "genes", "card"} <= set(dir(model))
    model.trained_on["another"] = "patient"  # a copy
    assert list(model.trained_on) == ["section_0_spots", "section_1_spots"]
    genes, best = model.genes, model.scores["pearson"]
    model.genes.sort()  # copies, too: a user's order is no other order of the predictions
    model.genes.append("another")
    model.scores.sort_values("pearson", inplace=True)
    assert model.genes == genes and model.scores["pearson"].equals(best)
    for name in ("unit", "novelty", "interrupted", "genes", "scores", "config"):
        with pytest.raises(AttributeError, match=f"{name} of a model cannot be set"):
            setattr(model, name, None)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        model.nonsense  # noqa: B018
    other = deepcopy(model)
    assert other.identifier == model.identifier and other.unit == model.unit


def test_a_card_holds_values_of_its_own(model: nh.NH2ST) -> None:
    given = {"s": "p"}
    card = replace(model.card, trained_on=given, patch_um=np.float32(75), seed=np.int64(3))
    given["t"] = "q"
    assert card.trained_on == {"s": "p"}
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card
    with pytest.raises(AttributeError):
        card.unit = "x"  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"none of \['unit'\] and unknown \['unti'\]"):
        Card.from_json({**{k: v for k, v in card.to_json().items() if k != "unit"}, "unti": "x"})


def test_a_table_in_notebooks(model: nh.NH2ST) -> None:
    scores = model.scores.assign(pearson=[0.1, 0.7, 0.5, np.nan, 0.3])
    card = replace(model.card, trained_on={f"<{i}>": f"patient{i % 2}" for i in range(9)})
    told = nh.NH2ST(**{**vars(model), "scores": scores, "card": card})
    rows = dict(re.findall(r"<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>", told._repr_html_()))
    genes = model.genes
    assert rows["genes"] == f"5: {', '.join(genes[:4])}, ..."
    assert rows["training sections"] == "9: &lt;0&gt;, &lt;1&gt;, &lt;2&gt;, &lt;3&gt;, ..."  # as text
    assert rows["groups held out"] == "2: patient0, patient1"
    assert rows["patches"] == "75 µm, spots 100 µm apart"
    assert rows["image encoder"] == "colours" and rows["preset"] == "default" and rows["unit"] == model.unit
    assert rows["Pearson on held-out tissue"] == "mean 0.400, median 0.400"
    assert rows["best genes"].startswith(f"{genes[1]} 0.70, {genes[2]} 0.50")
    assert rows["members"] == f"2, of {min(n := epochs_of(model))} to {max(n)} epochs"
    stopped = replace(model.card, interrupted=True)
    unknown = nh.NH2ST(**{**vars(model), "scores": scores.assign(pearson=np.nan), "card": stopped})._repr_html_()
    assert unknown.count("not known") == 2 and "(interrupted)" in unknown
    assert max(map(len, repr(told).splitlines())) < 140 and "9 section(s): <0>, <1>, <2>, <3>, ..." in repr(told)


def epochs_of(model: nh.NH2ST) -> list[int]:
    return [int((model.history["member"] == i).sum()) for i in range(len(model.members))]


def test_prediction_is_the_mean_of_the_members(model: nh.NH2ST, sdata: SpatialData) -> None:
    whole = predictions(model, sdata)
    parts = []
    for member in model.members:
        alone = nh.NH2ST(**{**vars(model), "members": [member]})
        parts.append(predictions(alone, sdata))
    assert np.allclose(whole, np.mean(parts, axis=0), atol=1e-5)
    assert not np.allclose(parts[0], parts[1], atol=1e-2)


def featured(sdata: SpatialData, model: nh.NH2ST) -> tuple[Section, np.ndarray]:
    """The first section, and the features of the model's encoder."""
    nh.tl.predict_expression(sdata, model=model, encoder=Colours(), progress=False)
    section = locate_sections(sdata)[0]
    return section, sdata["table"].obsm["nh2st_features"][section.rows]


def test_attention_is_the_mean_of_the_members(model: nh.NH2ST, sdata: SpatialData) -> None:
    section, features = featured(sdata, model)
    gone = 3
    there = np.arange(section.n_spots) != gone
    section = replace(section, usable=there)
    whole = model.attention(section, features)
    assert whole.shape == section.neighbours.nodes.shape and whole.dtype == np.float32
    assert np.isnan(whole[gone]).all()
    assert np.allclose(whole[there].sum(axis=1), 1, atol=1e-5)
    assert ((whole > 0) == section.neighbours.mask)[there].all()
    single = [nh.NH2ST(**{**vars(model), "members": [member]}) for member in model.members]
    parts = [one.attention(section, features)[there] for one in single]
    assert np.allclose(whole[there], np.mean(parts, axis=0), atol=1e-6)
    assert not np.allclose(parts[0], parts[1], atol=1e-3)


def test_attention_is_refused_where_there_is_none(model: nh.NH2ST, paper: nh.NH2ST, sdata: SpatialData) -> None:
    section, features = featured(sdata, model)
    with pytest.raises(ValueError, match=r"preset 'paper' predicts from the spot alone .* with nh\.tl\.train"):
        paper.attention(section, features)
    n = features.shape[1]
    told = rf"trained on {n} features \(colours\), found {n - 1} in .*nh\.tl\.predict_expression\(sdata, model=model\)"
    for method in (model.attention, model.predict, model.uncertainty):
        with pytest.raises(ValueError, match=told):
            method(section, features[:, 1:])


def test_the_embedding_has_no_more_axes_than_genes(model: nh.NH2ST) -> None:
    assert model.components.shape == (5, 5)
    assert model.embed(np.ones((3, 5), dtype=np.float32)).shape == (3, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("which", ["model", "paper"])
def test_a_gpu_predicts_what_the_processor_does(which: str, sdata: SpatialData, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    found = []
    for device in ("cpu", "cuda"):
        nh.tl.predict_expression(sdata, model=model, encoder=Colours(), device=device, progress=False)
        table = sdata["table"]
        found.append(table.layers["nh2st"][:, table.var["nh2st"].to_numpy()])
    assert np.allclose(*found, atol=1e-3)


# ------------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("which", ["model", "paper"])
def test_a_saved_model_comes_back_the_same(
    which: str, sdata: SpatialData, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(which)
    folder = model.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # who may read one may read all
    torch.manual_seed(3)
    state = torch.get_rng_state()
    loaded = nh.NH2ST.load(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(predictions(loaded, sdata), predictions(model, sdata))
    assert loaded.provenance() == model.provenance()
    assert repr(loaded) == repr(model)
    assert (loaded.genes, loaded.config) == (model.genes, model.config)
    assert np.array_equal(loaded.components, model.components)
    pd.testing.assert_frame_equal(loaded.history, model.history, check_exact=True)
    pd.testing.assert_frame_equal(loaded.scores, model.scores, check_exact=True)


def test_nothing_is_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert len(nh.NH2ST.load(folder).genes) == 5


def test_an_interrupted_single_member_without_scores_is_saved_too(model: nh.NH2ST, tmp_path: Path) -> None:
    scores = model.scores.assign(pearson=[np.nan, 0.5, 0.25, np.nan, 0.1])
    one = nh.NH2ST(**{**vars(model), "members": model.members[:1], "scores": scores})
    loaded = nh.NH2ST.load(one.save(tmp_path / "one"))
    pd.testing.assert_frame_equal(loaded.scores, scores)
    assert loaded.provenance()["mean_pearson"] == pytest.approx(np.mean([0.5, 0.25, 0.1]))
    unscored = nh.NH2ST(**{**vars(model), "scores": scores.assign(pearson=np.nan)})
    assert "held-out tissue of the training sections: nan" in repr(nh.NH2ST.load(unscored.save(tmp_path / "none")))


def test_a_folder_with_something_in_it_is_kept(model: nh.NH2ST, folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"exists: choose another folder, or pass overwrite=True"):
        model.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"to be a folder, but .*file is a file"):
        model.save(tmp_path / "file")
    other = nh.NH2ST(**{**vars(model), "members": model.members[:1]})
    other.save(folder, overwrite=True)
    assert len(nh.NH2ST.load(folder).members) == 1
    (tmp_path / "empty").mkdir()
    assert model.save(str(tmp_path / "empty")) == tmp_path / "empty"


@pytest.mark.parametrize("at", ["writing", "swapping"])
def test_a_failed_save_leaves_what_was_there(
    at: str, model: nh.NH2ST, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    replace = os.replace

    def stuck(source: Path, target: Path) -> None:
        """The second new file does not reach its place; the way back is free."""
        if source.name == "weights.safetensors" and source.parent.parent == target.parent:
            full()
        replace(source, target)

    with monkeypatch.context() as patch:
        if at == "writing":
            patch.setattr(pd.DataFrame, "to_csv", full)
        else:
            patch.setattr(os, "replace", stuck)
        other = nh.NH2ST(**{**vars(model), "members": model.members[:1]})
        with pytest.raises(OSError, match="No space left"):
            other.save(folder, overwrite=True)
        with pytest.raises(OSError, match="No space left"):
            other.save(tmp_path / "new")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "new").exists()
    other.save(folder, overwrite=True)
    assert len(nh.NH2ST.load(folder).members) == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "notes.txt"])


# ------------------------------------------------------------------------------------------------------- damage


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected a model saved with model\.save\(.*nowhere"):
        nh.NH2ST.load(tmp_path / "nowhere")
    for name in FILES:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"found no \['{name}'\] there"):
            nh.NH2ST.load(folder)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": null}', "null", "\x00\x01"])
def test_damaged_json(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.json in .* is damaged"):
        nh.NH2ST.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"weights\.safetensors in .* is damaged"):
        nh.NH2ST.load(folder)


def test_damaged_history(folder: Path) -> None:
    (folder / "history.csv").write_text("")
    with pytest.raises(ValueError, match=r"history\.csv in .* is damaged"):
        nh.NH2ST.load(folder)


def test_a_model_of_a_newer_version(folder: Path) -> None:
    edit(folder / "model.json", lambda about: about.update(format=FORMAT + 1))
    with pytest.raises(ValueError, match=rf"has format {FORMAT + 1}; this version reads up to {FORMAT}\. Update"):
        nh.NH2ST.load(folder)


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "gene renamed": lambda about: about["genes"].__setitem__(0, "RENAMED"),
    "genes in another order": lambda about: about["genes"].reverse(),
    "gene removed": lambda about: about["genes"].pop(),
    "no genes": lambda about: about.pop("genes"),
    "no config": lambda about: about.pop("config"),
    "setting of the future": lambda about: about["config"].update(flux=1),
    "other width": lambda about: about["config"].update(embedding=32),
    "impossible width": lambda about: about["config"].update(embedding=-1),
    "other inputs": lambda about: about.update(n_inputs=[3, 3]),
    "more members": lambda about: about.update(n_members=3),
    "no identifier": lambda about: about.pop("identifier"),
    "no unit": lambda about: about["card"].pop("unit"),
    "no scores": lambda about: about.update(pearson=[0.1]),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS.keys())
def test_an_edited_description_is_noticed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder / "model.json", lambda about: change(about) and None)
    with pytest.raises(ValueError, match=r"Weights and model\.json in .* do not belong together or were edited"):
        nh.NH2ST.load(folder)


def test_weights_of_another_model_are_noticed(folder: Path, sdata: SpatialData, tmp_path: Path) -> None:
    other = train(sdata, seed=1, max_epochs=1).save(tmp_path / "other")
    (folder / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match="genes or weights are not those that were saved"):
        nh.NH2ST.load(folder)


def test_another_encoder_than_the_models_is_refused(folder: Path, sdata: SpatialData) -> None:
    loaded, before = nh.NH2ST.load(folder), list(sdata["table"].layers)

    class Other(Colours):
        weights_hash = "v2"

    with pytest.raises(
        ValueError, match=r"trained with encoder 'colours' \(weights v1\), found 'colours' \(weights v2\)"
    ):
        nh.tl.predict_expression(sdata, model=loaded, encoder=Other(), key_added="x", progress=False)
    with pytest.raises(ValueError, match="The model was trained with encoder 'colours': pass it as encoder="):
        nh.tl.predict_expression(sdata, model=loaded, key_added="x", progress=False)
    assert list(sdata["table"].layers) == before


# --------------------------------------------------------------------------------------- models of earlier versions


def stored_spots(folder: Path) -> tuple[Section, np.ndarray, np.ndarray]:
    """The spots stored beside a model, their features, and the predictions of the version that made it."""
    with np.load(folder / "spots.npz", allow_pickle=False) as stored:
        spots = dict(stored)
    n = len(spots["features"])
    section = Section(
        name="stored",
        shapes_key="stored",
        rows=np.arange(n),
        geometry=None,  # type: ignore[arg-type]
        spacing_um=100.0,
        usable=np.ones(n, dtype=bool),
        neighbours=Neighbours(spots["nodes"], spots["mask"], spots["offsets"]),
        group="stored",
    )
    return section, spots["features"], spots["predicted"]


def write_model() -> None:
    """Write a model of the present format with 20 spots and their predictions."""
    made = train(small_section(), max_epochs=10)
    folder = made.save(SAVED / f"format_{FORMAT}")
    rng = np.random.default_rng(0)
    nodes = np.array([[i, *(np.arange(i + 1, i + 9) % 20)] for i in range(20)])
    mask = rng.random(nodes.shape) < 0.8
    mask[:, 0] = True
    offsets = rng.normal(size=(20, 9, 2)).astype(np.float32) * mask[..., None]
    offsets[:, 0] = 0
    features = rng.normal(size=(20, made.members[0].n_features)).astype(np.float32)
    given = {"features": features, "nodes": nodes, "mask": mask, "offsets": offsets}
    np.savez_compressed(folder / "spots.npz", predicted=np.zeros(0), **given)
    section, _, _ = stored_spots(folder)
    np.savez_compressed(folder / "spots.npz", predicted=made.predict(section, features), **given)


@pytest.mark.parametrize("folder", sorted(SAVED.glob("format_*")), ids=lambda path: path.name)
def test_models_of_earlier_versions_predict_what_they_did(folder: Path) -> None:
    loaded = nh.NH2ST.load(folder)
    section, features, expected = stored_spots(folder)
    assert expected.std(axis=0).min() > 0.01
    assert np.allclose(loaded.predict(section, features), expected, atol=1e-4)
    assert len(loaded.genes) == 5
    assert len(loaded.history) == 20
    assert loaded.scores["pearson"].notna().all()
    assert loaded.config.name == "default"
    assert (loaded.encoder, loaded.encoder_hash, loaded.patch_um) == ("colours", "v1", 75.0)


def test_a_model_of_the_present_format_is_kept() -> None:
    assert (SAVED / f"format_{FORMAT}" / "weights.safetensors").is_file()


if __name__ == "__main__":
    write_model()
