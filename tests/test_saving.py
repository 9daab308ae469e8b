"""Saving a model: killed at any step, on a full disk at any step, and values that rot afterwards."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import nh2st_scverse as nh
from nh2st_scverse.model import Card, Trust
from nh2st_scverse.nn import Config, Member
from nh2st_scverse.train.trust import Novelty, Residuals

FILES = ["history.csv", "model.json", "weights.safetensors"]
GENES = ["A", "B", "C"]
N_FEATURES = 6


def drawn_model(seed: int = 0, n_members: int = 2) -> nh.NH2ST:
    """A model that was never trained."""
    rng = np.random.default_rng(seed)
    config = Config.preset(embedding=8, hidden=8, bottleneck=8, heads=2, n_components=4, landmarks=5)
    members = []
    for _ in range(n_members):
        member = Member(config, N_FEATURES, 4, len(GENES), n_landmarks=5)
        member.load_state_dict(
            {k: torch.tensor(rng.normal(size=v.shape), dtype=v.dtype) for k, v in member.state_dict().items()}
        )
        members.append(member)
    rows = [{"member": m, "held_out": "NA", "epoch": e, "loss": rng.random()} for m in range(n_members) for e in (0, 1)]
    return nh.NH2ST(
        members=members,
        genes=GENES,
        config=config,
        card=Card(
            unit="u",
            patch_um=75.0,
            spacing_um=100.0,
            encoder="colours",
            encoder_hash="v1",
            encoder_dim=N_FEATURES,
            patch_px=16,
            stain={"method": "reinhard", "mu": [0.1, 0.2, 0.3]},
            trained_on={"s": "p", "t": "q"},
            seed=seed,
            interrupted=True,
        ),
        history=pd.DataFrame(rows),
        scores=pd.DataFrame({"pearson": [0.1, np.nan, 0.3]}, index=pd.Index(GENES, name="gene")),
        trust=Trust(
            components=rng.normal(size=(3, 3)).astype(np.float32),
            residuals=Residuals(rng.random((2, 3)).astype(np.float32), rng.random((3, 3)).astype(np.float32)),
            novelty=Novelty(rng.random(N_FEATURES).astype(np.float32), rng.random((N_FEATURES, 2), np.float32), 1.5),
        ),
    )


@pytest.fixture
def model() -> nh.NH2ST:
    return drawn_model()


@pytest.fixture
def folder(model: nh.NH2ST, tmp_path: Path) -> Path:
    return model.save(tmp_path / "model")


# ---------------------------------------------------------------------------------------------- what is kept


def test_everything_comes_back(model: nh.NH2ST, folder: Path) -> None:
    loaded = nh.NH2ST.load(folder)
    assert loaded.identifier == model.identifier
    assert (loaded.card, loaded.config, loaded.genes) == (model.card, model.config, model.genes)
    assert loaded.interrupted and loaded.stain == {"method": "reinhard", "mu": [0.1, 0.2, 0.3]}
    pd.testing.assert_frame_equal(loaded.history, model.history, check_exact=True)
    pd.testing.assert_frame_equal(loaded.scores, model.scores, check_exact=True)
    assert model.trust.arrays().keys() == loaded.trust.arrays().keys()
    for name, values in model.trust.arrays().items():
        assert np.array_equal(loaded.trust.arrays()[name], values)
    assert not nh.NH2ST.load(without(model, "interrupted").save(folder.parent / "whole")).interrupted


def without(model: nh.NH2ST, flag: str) -> nh.NH2ST:
    return nh.NH2ST(**{**vars(model), "card": replace(model.card, **{flag: False})})


CHANGES: dict[str, Callable[[nh.NH2ST], dict[str, Any]]] = {
    "genes": lambda m: {"genes": ["B", "A", "C"]},
    "config": lambda m: {"config": replace(m.config, n_similar=2)},
    "unit": lambda m: {"card": replace(m.card, unit="v")},
    "patch_um": lambda m: {"card": replace(m.card, patch_um=76.0)},
    "spacing_um": lambda m: {"card": replace(m.card, spacing_um=101.0)},
    "encoder": lambda m: {"card": replace(m.card, encoder="other")},
    "encoder_hash": lambda m: {"card": replace(m.card, encoder_hash="v2")},
    "patch_px": lambda m: {"card": replace(m.card, patch_px=17)},
    "stain": lambda m: {"card": replace(m.card, stain=None)},
    "scores": lambda m: {"scores": m.scores.assign(pearson=[0.1, 0.2, 0.3])},
    "components": lambda m: {"trust": replace(m.trust, components=m.components * 2)},
    "residuals": lambda m: {"trust": replace(m.trust, residuals=None)},
    "widths": lambda m: {"trust": replace(m.trust, residuals=replace(m.residuals, widths=2 * m.residuals.widths))},
    "novelty": lambda m: {"trust": replace(m.trust, novelty=replace(m.novelty, scale=1.6))},
    "members": lambda m: {"members": m.members[::-1]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_identifier_depends_on_all_that_predictions_depend_on(change: Callable[..., Any], model: nh.NH2ST) -> None:
    other = nh.NH2ST(**{**vars(model), **change(model)})
    assert other.identifier != model.identifier
    same = nh.NH2ST(**{**vars(model), "card": replace(model.card, packages={"torch": "0"})})
    assert same.identifier == model.identifier


# ------------------------------------------------------------------------------------------ what rots or is edited


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each plain value of a JSON document stands."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, one in items for leaf in leaves(one, (*at, key))] or [at]


def test_every_edited_value_of_the_description_is_noticed(folder: Path) -> None:
    path = folder / "model.json"
    text = path.read_text()
    places = leaves(json.loads(text))
    assert len(places) > 60
    for place in places:
        about = json.loads(text)
        inner = about
        for key in place[:-1]:
            inner = inner[key]
        value = inner[place[-1]]
        inner[place[-1]] = (not value) if isinstance(value, bool) else value + "x" if isinstance(value, str) else 7
        path.write_text(json.dumps(about))
        with pytest.raises(ValueError, match=r"damaged|edited|Update nh2st-scverse"):
            nh.NH2ST.load(folder)
    path.write_text(text)
    assert nh.NH2ST.load(folder).interrupted


def test_every_edited_array_is_noticed(folder: Path) -> None:
    path = folder / "weights.safetensors"
    arrays = load_file(path)
    assert {"components", "residuals", "novelty.mean", "0.target_mean", "1.ridge.weights"} <= set(arrays)
    for name, values in arrays.items():
        save_file({**arrays, name: values + 1}, path)
        with pytest.raises(ValueError, match="do not belong together or were edited"):
            nh.NH2ST.load(folder)
    for name in ("residuals", "novelty.mean", "0.target_mean"):
        for other in ({**arrays, name: arrays[name][None]}, {k: v for k, v in arrays.items() if k != name}):
            save_file(other, path)
            with pytest.raises(ValueError, match="do not belong together or were edited"):
                nh.NH2ST.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_bits_that_flip_are_noticed(name: str, model: nh.NH2ST, folder: Path) -> None:
    path = folder / name
    content = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        at = rng.randrange(len(content))
        flipped = bytes([content[at] ^ 1 << rng.randrange(8)])
        path.write_bytes(content[:at] + flipped + content[at + 1 :])
        try:
            loaded = nh.NH2ST.load(folder)
        except ValueError as error:
            assert any(word in str(error) for word in ("damaged", "edited", "Update nh2st-scverse"))
        else:  # between the values
            assert name == "model.json" and loaded.identifier == model.identifier and loaded.card == model.card
            assert content[at : at + 1].isspace()
    for end in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="damaged"):
            nh.NH2ST.load(folder)


# ------------------------------------------------------------------------------------------- kills and full disks

SCRIPT = """
import os, shutil, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import nh2st_scverse as nh
from test_saving import FILES, drawn_model

folder = Path({folder!r})
old, new, third = (drawn_model(seed, n_members=1) for seed in range(3))
touches = {{"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod"}}
count, armed = 0, False
os.fsync = lambda handle: None  # quick: no power fails here

def watch(event, args):  # before each touch of the folder
    global count
    if not armed or event not in touches or str(folder) not in str(args[0]):
        return
    count += 1
    if count < limit or (mode == "once" and count > limit):
        return
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(28, "No space left on device")

def save():  # 0: saved, 1: no space, 2: saved with fewer touches than the limit
    global armed, count
    armed, count = True, 0
    try:
        new.save(folder, overwrite=True)
    except OSError as error:
        assert "No space left" in str(error), error
        return 1
    finally:
        armed = False
    return 0 if count >= limit else 2

def save_in_a_child():
    child = os.fork()
    if not child:
        os._exit(save())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def found():
    try:
        return nh.NH2ST.load(folder).identifier
    except FileNotFoundError:
        return None

sys.addaudithook(watch)
for mode in ("kill", "once", "full"):
    for before in (old, None):
        seen, limit, code = set(), 0, None
        while code != 2:
            limit += 1
            shutil.rmtree(folder, ignore_errors=True)
            if before:
                before.save(folder)
                (folder / "notes.txt").write_text("mine")
            code = save_in_a_child() if mode == "kill" else save()
            now, names = found(), sorted(os.listdir(folder)) if folder.exists() else []
            told = mode, before, limit, code, now, names
            assert code in ((-signal.SIGKILL, 2) if mode == "kill" else (0, 1, 2)), told
            assert now in (before and before.identifier, new.identifier), told
            if code in (0, 2) or mode == "once":  # what was told is true: a failure that passes can be undone
                assert (now == new.identifier) == (code != 1), told
            if mode == "once" and code == 1:
                assert names == (sorted([*FILES, "notes.txt"]) if before else []), told
            seen.add(now)
            third.save(folder, overwrite=True)
            assert sorted(set(os.listdir(folder)) - {{"notes.txt"}}) == FILES, told
        assert found() == third.identifier, told
        assert len(seen) == 2 and limit > 15, (seen, limit)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_the_old_or_the_new_model_loads_whatever_happens(tmp_path: Path, start: Any) -> None:
    """Children are killed, or get no space (once, or from then on), at each touch of the folder."""
    paths = [str(Path(nh.__file__).parents[1]), str(Path(__file__).parent)]
    ran = start(SCRIPT.format(paths=paths, folder=str(tmp_path / "saved" / "here")), tmp_path)
    ran.join(900)
    assert ran.exitcode == 0, (tmp_path / "said").read_text()


def test_a_first_save_that_was_killed_is_no_model_that_is_in_the_way(model: nh.NH2ST, tmp_path: Path) -> None:
    (tmp_path / "m" / ".saving-0123").mkdir(parents=True)
    (tmp_path / "m" / ".saving-0123" / "model.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=r"found no \['model\.json'"):
        nh.NH2ST.load(tmp_path / "m")
    model.save(tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == FILES
