"""The folder of a saved model: ``weights.safetensors``, ``model.json`` and ``history.csv``; nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nh2st_scverse.encoders import Encoder, get
from nh2st_scverse.encoders._torch import trunk_of
from nh2st_scverse.model.card import Card
from nh2st_scverse.model.trust import COMPONENTS, NOVELTY, RESIDUALS, Trust
from nh2st_scverse.nn import Config, Member
from nh2st_scverse.train.fit import seeded

FORMAT = 3  # 2: residuals had no widths of intervals; 1: the ridge was linear, too
FILES = ("model.json", "weights.safetensors", "history.csv")


def write(
    folder: Path,
    weights: dict[str, torch.Tensor],
    arrays: dict[str, np.ndarray],
    description: dict[str, Any],
    history: pd.DataFrame,
    *,
    overwrite: bool,
) -> None:
    """Write a model to a folder, whole or not at all.

    The files are written to a folder inside and take their places when all are there.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise FileExistsError(f"{folder} exists: choose another folder, or pass overwrite=True.")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
        save_file(weights | tensors, new / "weights.safetensors")
        (new / "model.json").write_text(json.dumps(description, indent=1, allow_nan=False), encoding="utf-8")
        history.to_csv(new / "history.csv", index=False)
        shutil.copymode(new / "model.json", new / "weights.safetensors")  # safetensors shuts out everyone else
        _swap(new, folder)
    except BaseException:
        shutil.rmtree(new)
        if made:
            folder.rmdir()
        raise
    shutil.rmtree(new)


def _swap(new: Path, folder: Path) -> None:
    """Put new files in their places; when that fails, the old ones again."""
    old = new / "old"
    old.mkdir()
    begun = []
    try:
        for name in FILES:
            begun.append(name)
            if (folder / name).exists():
                os.replace(folder / name, old / name)
            os.replace(new / name, folder / name)
    except BaseException:
        for name in begun:
            if (old / name).exists():
                os.replace(old / name, folder / name)
            elif not (new / name).exists():  # there was none before
                (folder / name).unlink(missing_ok=True)
        raise


def read(folder: Path, encoder: str | Encoder | None) -> dict[str, Any]:
    """The arguments of the model that :func:`write` wrote."""
    lacking = [n for n in FILES if not (folder / n).is_file()]
    if lacking:
        raise FileNotFoundError(f"Expected a model saved with model.save({str(folder)!r}), found no {lacking} there.")
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        written = int(about["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model.json in {folder} is damaged: {error!r}. Save the model again.") from error
    if written > FORMAT:
        raise ValueError(
            f"The model in {folder} has format {written}; this version reads up to {FORMAT}. Update nh2st-scverse."
        )
    try:
        weights = load_file(folder / "weights.safetensors")
    except SafetensorError as error:
        raise ValueError(f"weights.safetensors in {folder} is damaged: {error}. Save the model again.") from error
    beside = [k for k in weights if k in (COMPONENTS, RESIDUALS) or k.startswith(f"{NOVELTY}.")]
    arrays = {name: weights.pop(name).numpy() for name in beside}
    try:
        history = pd.read_csv(folder / "history.csv", float_precision="round_trip", converters={"held_out": str})
    except ValueError as error:
        raise ValueError(f"history.csv in {folder} is damaged: {error}. Save the model again.") from error
    try:
        if COMPONENTS not in arrays or about["identifier"] != identifier(about["genes"], weights):
            raise ValueError("genes or weights are not those that were saved")
        config = Config.from_dict(about["config"])
        layers = _layers(about["encoder"], encoder) if config.fine_tune else None
        members = []
        for i in range(about["n_members"]):
            state = {k.split(".", 1)[1]: v for k, v in weights.items() if k.startswith(f"{i}.")}
            with seeded(0):  # these weights are replaced
                trunk = None if layers is None else trunk_of(layers)
                sizes = about["n_features"], about["n_inputs"][i], len(about["genes"])
                member = Member(config, *sizes, trunk, len(state.get("landmarks", ())))
            member.load_state_dict(state)
            members.append(member)
        index = pd.Index(about["genes"], name="gene")
        scores = pd.Series(about["pearson"], index, dtype=float, name="pearson").to_frame()
        card = Card.from_json({one.name: about[one.name] for one in fields(Card) if one.name in about})
        trust = Trust.of(arrays)
    except _OtherEncoder as error:
        raise ValueError(str(error)) from None
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Weights and model.json in {folder} do not belong together or were edited: {error!r}. Save the model "
            "again."
        ) from error
    return {
        "members": members,
        "config": config,
        "history": history,
        "scores": scores,
        "genes": about["genes"],
        "card": card,
        "trust": trust,
    }


def identifier(genes: Sequence[str], weights: dict[str, torch.Tensor]) -> str:
    """Short hash of the weights and the panel."""
    digest = hashlib.sha256(json.dumps(list(genes)).encode())
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]


class _OtherEncoder(Exception):
    """The layers of a trained encoder are not at hand."""


def _layers(name: str, encoder: str | Encoder | None) -> Encoder:
    """The encoder whose layers a model trained, of the given name."""
    try:
        found = get(encoder or name)
    except ValueError:
        raise _OtherEncoder(f"The model trained encoder {name!r}: pass it to NH2ST.load as encoder=.") from None
    if found.name != name:
        raise _OtherEncoder(f"The model trained encoder {name!r}, found encoder={found.name!r}.")
    return found
