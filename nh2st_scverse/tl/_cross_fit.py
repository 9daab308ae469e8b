"""Predict every spot by a model that never saw it: what ``tl.predict_expression`` does without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse._logging import logger
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.metrics import pearson
from nh2st_scverse.model import NH2ST, novelty_of, principal_genes
from nh2st_scverse.nn import Config
from nh2st_scverse.prediction import Prediction, check_free, check_size, write
from nh2st_scverse.tl._prepare import Prepared, add_expression, add_images, border, collect, fit_stain, leave_features
from nh2st_scverse.tl._train import choose_encoder, fit
from nh2st_scverse.train.folds import Fold, make_folds
from nh2st_scverse.train.trust import Residuals

WORTH = 0.7  # of the training spots that are left without a wider field of view: what a wider one must leave


def cross_fit(
    sdata: SpatialData,
    config: Config,
    keys: dict[str, Any],
    key_added: str,
    table_added: str | None,
    *,
    uncertainty: bool,
    groups: Any,
    genes: str | Sequence[str],
    n_genes: int | None,
    encoder: str | Encoder | None,
    patch_um: float | None,
    layer: str | None,
    seed: int,
    checkpoint_dir: str | Path | None,
    encoding: dict[str, Any],
    training: dict[str, Any],
) -> None:
    prepared = collect(sdata, groups=groups, patch_um=patch_um, n_nodes=config.n_nodes, **keys)
    if table_added is None:
        check_size(prepared.tables[0])
        check_free(prepared.tables[0], key_added)
    config = fields_that_fit(prepared, config, seed)
    folds, splits = outer_folds(prepared, config, seed)
    _warn_small(prepared, splits)
    panel = add_expression(prepared, config, genes=genes, n_genes=n_genes, layer=layer, splits=splits)
    used = choose_encoder(config, encoder)
    predicted = [np.full((s.n_spots, len(panel)), np.nan, dtype=np.float32) for s in prepared.sections]
    novelty = [np.full(s.n_spots, np.nan, dtype=np.float32) for s in prepared.sections]
    models = []
    for i, before in enumerate(folds):
        if i == 0 or config.stain != "none":  # the colours are those of the training sections
            fit_stain(prepared, config, before.train)
            add_images(prepared, config, used, **encoding)
            ready, _ = outer_folds(prepared, config, seed)  # the same ones, now with features and expression
        fold = ready[i]
        given = fold.train_groups, panel, config, prepared, used
        model = fit_fold(ready, i, *given, seed=seed, checkpoint_dir=checkpoint_dir, **training)
        if model.interrupted:
            go_on = f" Go on with resume=True, from {checkpoint_dir}." if checkpoint_dir is not None else ""
            raise KeyboardInterrupt(
                f"Cross-fitting was interrupted: nothing is written, the object is as it was.{go_on}"
            )
        models.append(model)
        for at, spots in fold.held_out:
            section = prepared.sections[at]
            found = model.predict(section)
            predicted[at][spots] = found[spots]
            if uncertainty:
                novelty[at][spots] = novelty_of(model, section)[spots]

    spreads, widths = _spreads(prepared.sections, ready, predicted) if uncertainty else ([], None)
    scores = held_out_pearson(prepared.sections, predicted)
    everything = np.concatenate([p[np.isfinite(p).all(axis=1)] for p in predicted])
    about = models[0].provenance() | {
        "cross_fitted": True,
        "model": ",".join(model.identifier for model in models),
        "folds": json.dumps([fold.name for fold in folds]),
        "mean_pearson": float(pd.Series(scores).mean()),
    }
    values = np.concatenate(predicted)
    prediction = Prediction(
        genes=panel,
        values=values,
        pearson=scores,
        embedding=values @ principal_genes(everything),
        border=border(prepared, config),
        about=about,
        std=np.concatenate(spreads) if uncertainty else None,
        widths=widths,
        novelty=np.concatenate(novelty) if uncertainty else None,
    )
    rows = np.concatenate([section.rows for section in prepared.sections])
    write(sdata, prepared.tables[0], rows, prediction, key=key_added, table_added=table_added)
    leave_features(prepared)


def fit_fold(
    folds: Sequence[Fold],
    i: int,
    groups: Sequence[str],
    panel: Sequence[str],
    config: Config,
    prepared: Prepared,
    encoder: Encoder,
    *,
    checkpoint_dir: str | Path | None,
    **training: Any,
) -> NH2ST:
    """Fit a model on the training sections of a fold, with checkpoints in a folder of its own."""
    return fit(
        folds[i].train,
        groups,
        panel,
        config,
        prepared,
        encoder,
        checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir) / f"fold_{i}",
        name=f"without {folds[i].name} ({i + 1}/{len(folds)})",
        **training,
    )


def _spreads(
    sections: Sequence[Section], folds: Sequence[Fold], predicted: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Standard deviations of the predictions of each fold from the residuals of the others, and the mean widths."""
    spreads = [np.full_like(values, np.nan) for values in predicted]
    widths = []
    for fold in folds:
        pairs = []
        for at, spots in (held for other in folds if other is not fold for held in other.held_out):
            section = sections[at]
            assert section.expression is not None
            known = spots[section.trainable[spots] & np.isfinite(predicted[at][spots]).all(axis=1)]
            pairs.append((predicted[at][known], section.expression[known]))
        residuals = Residuals.fit(*map(np.concatenate, zip(*pairs, strict=True)))
        widths.append(residuals.widths)
        for at, spots in fold.held_out:
            spreads[at][spots] = residuals.std(predicted[at][spots])
    return spreads, np.mean(widths, axis=0)


def _warn_small(prepared: Prepared, splits: Sequence[Sequence[tuple[int, np.ndarray]]]) -> None:
    """Say when the margin round a held-out block takes most of a section."""
    for i, stay in splits[0]:
        section = prepared.sections[i]
        if len(stay) < section.n_spots / 2:
            logger.warning(
                "Section %r is small: with a block held out, its margin leaves %d of %d spots to train on, and scores "
                "will be low. Several sections in one call are predicted from each other.",
                section.name,
                len(stay),
                section.n_spots,
            )


def fields_that_fit(prepared: Prepared, config: Config, seed: int) -> Config:
    """Leave out the widest fields of view of a preset where their margin round a held-out block takes too much."""
    if config.fields != Config.preset(config.name).fields or len(set(prepared.groups)) > 1:
        return config  # chosen by the user, or whole groups are held out and there is no margin
    wanted = config.fields
    enough = WORTH * _fewest_left(prepared, replace(config, fields=(min(wanted),)), seed)
    while len(config.fields) > 1 and _fewest_left(prepared, config, seed) < enough:
        config = replace(config, fields=tuple(f for f in config.fields if f < max(config.fields)))
    if config.fields != wanted:
        logger.info(
            "Fields of view of %s patches instead of %s: on sections of this size, the margin of wider ones round a "
            "held-out block takes too much tissue. Several sections in one call are held out whole, without a margin.",
            config.fields,
            wanted,
        )
    return config


def _fewest_left(prepared: Prepared, config: Config, seed: int) -> int:
    """Spots to train on in the fold that has the fewest."""
    try:
        _, splits = outer_folds(prepared, config, seed)
    except ValueError:  # nothing is left
        return 0
    return min(sum(len(stay) for _, stay in split) for split in splits)


def outer_folds(prepared: Prepared, config: Config, seed: int) -> tuple[list[Fold], list[list[tuple[int, np.ndarray]]]]:
    """Folds that are predicted by models trained without them, and the training spots of each."""
    folds = make_folds(prepared.sections, prepared.groups, patch_um=prepared.patch_um * max(config.fields), seed=seed)
    position = {section.name: i for i, section in enumerate(prepared.sections)}
    splits = []
    for fold in folds:
        split = []
        for section in fold.train:
            i = position[section.name]
            split.append((i, np.flatnonzero(np.isin(prepared.sections[i].rows, section.rows))))
        splits.append(split)
    return folds, splits


def held_out_pearson(sections: Sequence[Section], predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation (n_genes,) over the spots of each section, averaged over the sections."""
    scores = [
        pearson(s.expression[s.trainable], p[s.trainable])
        for s, p in zip(sections, predicted, strict=True)
        if s.expression is not None
    ]
    return pd.DataFrame(scores).mean().to_numpy()
