"""``tl.cross_fit``: predict every spot by a model that never saw it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._logging import logger
from nh2st_scverse._options import Elements, Panel, Run
from nh2st_scverse.data.checks import low_scores, raise_or_log
from nh2st_scverse.data.cohort import Cohort, check_apart, collect, elements_of
from nh2st_scverse.data.folds import Fold
from nh2st_scverse.data.inputs import KeptFeatures, Recipe
from nh2st_scverse.data.targets import Counts, Targets, check_panel, choose_panel, measure
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.encoders._base import blocks_of
from nh2st_scverse.metrics import pearson
from nh2st_scverse.model import NH2ST, novelty_of, principal_genes
from nh2st_scverse.model.card import held_out_tissue
from nh2st_scverse.model.ensemble import fit
from nh2st_scverse.nn import Config
from nh2st_scverse.nn.config import Preset, Settings, settings_docs
from nh2st_scverse.prediction import Prediction, write
from nh2st_scverse.tl._setup import (
    border,
    card_for,
    check_one_object,
    check_place,
    choose_encoder,
    outer_folds,
    recipe_for,
    rows_of,
    see,
    sight_that_fits,
)
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.trust import Residuals


class TrainingOptions(Settings, total=False):
    """The keywords of a training, which :func:`predict_expression` hands on."""

    groups: str | Sequence[str] | Mapping[str, str] | None
    genes: Sequence[str] | Panel
    n_genes: int | None
    preset: Preset
    patch_um: float | None
    layer: str | None
    seed: int
    checkpoint_dir: str | Path | None
    resume: bool
    trainer_kwargs: dict[str, Any] | None


@documented(keywords=Settings, settings=settings_docs())
def cross_fit(
    sdata: SpatialData,
    *,
    key_added: str = KEY,
    table_added: str | None = None,
    uncertainty: bool = False,
    groups: str | Sequence[str] | Mapping[str, str] | None = None,
    genes: Sequence[str] | Panel = "highest_mean",
    n_genes: int | None = 250,
    preset: Preset = "default",
    encoder: str | Encoder | Sequence[str | Encoder] | None = None,
    patch_um: float | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    layer: str | None = None,
    microns_per_pixel: float | None = None,
    allow: str | Iterable[str] = (),
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
    cache_dir: str | Path | None = None,
    client: Any = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    trainer_kwargs: dict[str, Any] | None = None,
    **settings: Unpack[Settings],
) -> None:
    """Predict every spot by a model that never saw it, and write the predictions into the table.

    Models are trained without one group each; without several groups: without one block of tissue, and without all
    spots that share a neighbour or a pixel with it. So predictions can be compared with the measured counts. It is what
    :func:`predict_expression` does without a model.

    Parameters
    ----------
    sdata
        Image, spots, and a table with counts that annotates them.
    key_added, table_added, uncertainty
        As in :func:`predict_expression`.
    groups, genes, n_genes, preset, encoder, patch_um, table_key, shapes_key, image_key, layer, microns_per_pixel, allow
        As in :func:`train`.
    device, seed, progress, cache_dir, client, checkpoint_dir, resume, trainer_kwargs
        As in :func:`train`.
    settings
        As in :func:`train`:

        $settings

    Returns
    -------
    None. What is written is listed at :func:`predict_expression`.

    Raises
    ------
    TypeError
        Several objects.
    KeyError, ValueError
        As :func:`train`; a name that holds something else already; too little tissue to hold out a block.
    KeyboardInterrupt
        The user interrupted: nothing is written but the features of the images.

    See Also
    --------
    predict_expression, evaluate, cross_validate

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> nh.tl.cross_fit(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> sdata["table"].layers["nh2st"].shape == sdata["table"].shape
    True
    """
    check_one_object(sdata)
    config = Config.preset(preset, **settings)
    run = Run.of(
        device=device,
        seed=seed,
        progress=progress,
        cache_dir=cache_dir,
        client=client,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        trainer_kwargs=trainer_kwargs,
    )
    elements = Elements.of(table_key, shapes_key, image_key, microns_per_pixel, allow)
    check_panel(genes, n_genes)
    used = choose_encoder(config, encoder, device)
    cohort = collect(sdata, elements, groups=groups, patch_um=patch_um, n_nodes=config.n_nodes, layer=layer)
    check_apart(cohort, layer)
    check_place(sdata, cohort.samples[0].table, key_added, table_added)
    config = sight_that_fits(cohort.sections, config, cohort.patch_um, seed, settings)
    folds = outer_folds(cohort.sections, config, cohort.patch_um, seed)
    _warn_small(cohort, folds[0])
    counts = Counts.of(cohort, layer)
    panel = choose_panel(counts, genes, n_genes, [fold.train for fold in folds])
    targets = measure(counts, panel, library=config.library, smoothed=config.smooth)
    predicted = [np.full(values.shape, np.nan, dtype=np.float32) for values in targets.values]
    novelty = [np.full(section.n_spots, np.nan, dtype=np.float32) for section in cohort.sections]
    models = []
    with KeptFeatures(cohort) as kept:
        for i, fold in enumerate(folds):
            if i == 0 or config.stain != "none":  # the colours are those of the training sections
                recipe = recipe_for(cohort, config, used, fold.train)
                inputs = see(cohort, recipe, config, kept, run)
                data = Data(cohort.sections, inputs, targets, blocks_of(used))
            model = fit_fold(data, folds, i, config, recipe, run)
            if model.interrupted:
                go_on = f" Go on with resume=True, from {checkpoint_dir}." if checkpoint_dir is not None else ""
                raise KeyboardInterrupt(
                    f"Cross-fitting was interrupted: no prediction is written; features of the images are kept.{go_on}"
                )
            models.append(model)
            for at, spots in fold.held_out:
                section, seen = cohort.sections[at], data.inputs[at]
                predicted[at][spots] = model.predict(section, seen, run.torch_device)[spots]
                if model.trust.novelty is not None:
                    novelty[at][spots] = novelty_of(model, section, seen)[spots]
    scores = held_out_pearson(targets, predicted)
    (doubt,) = low_scores(scores)
    raise_or_log([doubt])
    known = np.concatenate([p[np.isfinite(p).all(axis=1)] for p in predicted])
    values = np.concatenate(predicted)
    spread, widths = _spread(targets, folds, predicted) if uncertainty else (None, None)
    about = models[0].provenance() | {
        "cross_fitted": True,
        "elements": elements_of(cohort),
        "model": ",".join(model.identifier for model in models),
        "folds": json.dumps([fold.name for fold in folds]),
        "mean_pearson": float(pd.Series(scores).mean()),
        "held_out": held_out_tissue({section.name: section.group for section in cohort.sections}),
    }
    if doubt.status != "ok":
        about["warning"] = str(doubt)
    prediction = Prediction(
        genes=panel,
        values=values,
        pearson=scores,
        embedding=values @ principal_genes(known),
        border=border(cohort, config),
        about=about,
        std=None if spread is None else np.concatenate(spread),
        widths=widths,
        novelty=np.concatenate(novelty) if uncertainty or models[0].trust.novelty is not None else None,
    )
    table = cohort.samples[0].table
    write(sdata, table, rows_of(cohort), prediction, key=key_added, table_added=table_added)


def fit_fold(data: Data, folds: Sequence[Fold], i: int, config: Config, recipe: Recipe, run: Run) -> NH2ST:
    """Fit a model on the training spots of a fold, with checkpoints in a folder of its own."""
    train = data.take(folds[i].train)
    if run.checkpoint_dir is not None:
        run = run.but(checkpoint_dir=run.checkpoint_dir / f"fold_{i}")
    name = f"without {folds[i].name} ({i + 1}/{len(folds)})"
    return fit(train, config, card_for(train, recipe, run.seed), run, recipe.encoder, name=name)


def held_out_pearson(targets: Targets, predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation (n_genes,) over the spots of each section, averaged over the sections."""
    each = zip(targets.values, predicted, targets.trainable, strict=True)
    return pd.DataFrame([pearson(t[known], p[known], constant=0.0) for t, p, known in each]).mean().to_numpy()


def _spread(
    targets: Targets, folds: Sequence[Fold], predicted: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Standard deviations of the predictions of each fold from the residuals of the others, and the mean widths."""
    spreads = [np.full_like(values, np.nan) for values in predicted]
    widths = []
    for fold in folds:
        pairs = []
        for at, spots in (held for other in folds if other is not fold for held in other.held_out):
            known = spots[targets.trainable[at][spots] & np.isfinite(predicted[at][spots]).all(axis=1)]
            pairs.append((predicted[at][known], targets.values[at][known]))
        residuals = Residuals.fit(*map(np.concatenate, zip(*pairs, strict=True)))
        widths.append(residuals.widths)
        for at, spots in fold.held_out:
            spreads[at][spots] = residuals.std(predicted[at][spots])
    return spreads, np.mean(widths, axis=0)


def _warn_small(cohort: Cohort, fold: Fold) -> None:
    """Say when the margin round a held-out block takes most of a section."""
    for i, stay in fold.train:
        section = cohort.sections[i]
        if len(stay) < section.n_spots / 2:
            logger.warning(
                "Section %r is small: with a block held out, its margin leaves %d of %d spots to train on, and scores "
                "will be low. Several sections in one call are predicted from each other.",
                section.name,
                len(stay),
                section.n_spots,
            )
