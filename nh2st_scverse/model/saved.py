"""The folder of a saved model: ``weights.safetensors``, ``model.json`` and ``history.csv``; nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nh2st_scverse.encoders import Encoder, get
from nh2st_scverse.encoders._torch import trunk_of
from nh2st_scverse.model import folder as files
from nh2st_scverse.model.card import Card
from nh2st_scverse.model.trust import Trust
from nh2st_scverse.nn import Config, Member
from nh2st_scverse.train.fit import seeded

FORMAT = 4  # 3: values of the card stood beside the others; 2: no widths of intervals; 1: the ridge was linear, too
FILES = ("model.json", "weights.safetensors", "history.csv")
BESIDE = ("format", "identifier", "history", "checksum")  # what an identifier does not cover


def write(
    folder: Path,
    description: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    history: pd.DataFrame,
    *,
    overwrite: bool,
) -> None:
    """Write a model to a folder, which takes its files whole or not at all."""
    rows = history.to_csv(index=False, lineterminator="\n").encode()
    about = {
        "format": FORMAT,
        "identifier": identifier(description, arrays),
        **description,
        "history": hashlib.sha256(rows).hexdigest(),
    }
    text = json.dumps(about | {"checksum": checksum(about)}, indent=1, allow_nan=False)

    def weights(path: Path) -> None:
        try:
            save_file(dict(arrays), path)
        except SafetensorError as error:
            raise OSError(f"The weights could not be written to {folder}: {error}") from error

    writers = {
        "model.json": lambda path: path.write_text(text, encoding="utf-8"),
        "weights.safetensors": weights,
        "history.csv": lambda path: path.write_bytes(rows),
    }
    files.write(folder, writers, overwrite=overwrite)


def read(folder: Path, encoder: str | Encoder | None) -> dict[str, Any]:
    """The arguments of the model that :func:`write` wrote, this version or an earlier one.

    Raises
    ------
    FileNotFoundError
        A file is not there.
    ValueError
        A value is not the one that was saved.
    """
    paths = {name: files.find(folder, name) for name in FILES}
    lacking = [name for name, path in paths.items() if not path.is_file()]
    if lacking:
        raise FileNotFoundError(f"Expected a model saved with model.save({str(folder)!r}), found no {lacking} there.")
    try:
        about = json.loads(paths["model.json"].read_text(encoding="utf-8"))
        written = about["format"]
        if not isinstance(written, int) or written < 1:
            raise ValueError(f"format {written!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"model.json in {folder} is damaged: {error!r}. Save the model again.") from error
    if written > FORMAT:
        raise ValueError(
            f"The model in {folder} has format {written}; this version reads up to {FORMAT}. Update nh2st-scverse."
        )
    try:
        tensors = load_file(paths["weights.safetensors"])
    except SafetensorError as error:
        raise ValueError(f"weights.safetensors in {folder} is damaged: {error}. Save the model again.") from error
    history = _history(paths["history.csv"], about.get("history") if written > 3 else None)
    weights = {name: tensors.pop(name) for name in list(tensors) if name.partition(".")[0].isdigit()}
    try:
        if written > 3:
            _check(about, weights | tensors)
            card = Card.from_json(about["card"])
        else:
            if "components" not in tensors or about["identifier"] != _first_identifier(about["genes"], weights):
                raise ValueError("genes or weights are not those that were saved")
            card = Card.from_json({one.name: about[one.name] for one in fields(Card) if one.name in about})
        config = Config.from_dict(about["config"])
        if encoder is not None and not config.fine_tune:
            raise _OtherEncoder(
                f"The encoder {card.encoder!r} of the model in {folder} was frozen and is no part of it: pass encoder= "
                "to nh.tl.predict_expression(sdata, model=model), and leave it out here."
            )
        members = _members(about, config, card, weights, encoder)
        index = pd.Index(about["genes"], name="gene")
        return {
            "members": members,
            "genes": about["genes"],
            "config": config,
            "card": card,
            "history": history,
            "scores": pd.Series(about["pearson"], index, dtype=float, name="pearson").to_frame(),
            "trust": Trust.of({name: tensor.numpy() for name, tensor in tensors.items()}),
        }
    except _OtherEncoder as error:
        raise ValueError(str(error)) from None
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Weights and model.json in {folder} do not belong together or were edited: {error!r}. Save the model "
            "again."
        ) from error


def identifier(description: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> str:
    """Short hash of everything that predictions and their uncertainty depend on."""
    kept = {name: value for name, value in description.items() if name not in BESIDE}
    kept["card"] = {name: value for name, value in kept["card"].items() if name != "packages"}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def checksum(about: Mapping[str, Any]) -> str:
    """Hash of all that model.json tells."""
    kept = {name: value for name, value in about.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _check(about: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a value is not the one that was saved."""
    if about["checksum"] != checksum(about):
        raise ValueError("model.json is not as it was saved")
    if about["identifier"] != identifier(about, arrays):
        raise ValueError("genes or weights are not those that were saved")


def _first_identifier(genes: list[str], weights: Mapping[str, Tensor]) -> str:
    """That of formats 1 to 3, of genes and weights alone."""
    digest = hashlib.sha256(json.dumps(list(genes)).encode())
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]


def _history(path: Path, digest: str | None) -> pd.DataFrame:
    """The history, which must be as it was saved where its hash is known."""
    try:
        if digest is not None and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError("it is not as it was saved")
        return pd.read_csv(path, float_precision="round_trip", converters={"held_out": str})
    except ValueError as error:
        raise ValueError(f"history.csv in {path.parent} is damaged: {error}. Save the model again.") from error


def _members(
    about: Mapping[str, Any],
    config: Config,
    card: Card,
    weights: Mapping[str, Tensor],
    encoder: str | Encoder | None,
) -> list[Member]:
    layers = _layers(card.encoder, encoder) if config.fine_tune else None
    members = []
    for i in range(about["n_members"]):
        state = {k.split(".", 1)[1]: v for k, v in weights.items() if k.startswith(f"{i}.")}
        with seeded(0):  # these weights are replaced
            trunk = None if layers is None else trunk_of(layers)
            sizes = about["n_features"], about["n_inputs"][i], len(about["genes"])
            landmarks = state.get("ridge.landmarks", state.get("landmarks", ()))  # the latter of earlier versions
            member = Member(config, *sizes, trunk, len(landmarks))
        member.load_state_dict(state)
        members.append(member)
    return members


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
