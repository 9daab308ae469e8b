"""``tl.cross_validate``: NH2ST and baselines on groups that none of them saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse import metrics
from nh2st_scverse._constants import SCORES
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import check_one_of
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder, get
from nh2st_scverse.nn import Config
from nh2st_scverse.tl import _baselines
from nh2st_scverse.tl._cross_fit import fields_that_fit, fit_fold, outer_folds
from nh2st_scverse.tl._evaluate import ceilings
from nh2st_scverse.tl._prepare import add_expression, add_images, collect, fit_stain, leave_features
from nh2st_scverse.tl._splits import outer_groups
from nh2st_scverse.tl._train import DEVICES, check_trainer, choose_encoder


def cross_validate(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    groups: str | Sequence[str] | Mapping[str, str] | None = None,
    folds: int | str | None = None,
    fold_seed: int = 0,
    baselines: Iterable[str] = ("mean", "knn", "ridge", "mlp"),
    genes: str | Sequence[str] = "highest_mean",
    n_genes: int | None = 250,
    preset: str = "default",
    encoder: str | Encoder | None = None,
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
    **settings: Any,
) -> pd.DataFrame:
    """Leave each group out once, and score NH2ST and baselines on it.

    Inside a fold the gene panel, scaling, penalties and the end of training are chosen on the training groups alone.

    Parameters
    ----------
    sdata, groups, genes, n_genes, preset, encoder, patch_um
        As in :func:`train`.
    folds
        None leaves each group out once. A number shuffles the groups into so many folds. A name takes a published
        split: ``"stnet"`` (23 patients in 8 folds), ``"skin"`` (each of 4 patients), ``"pcw"`` (each of 3 ages),
        ``"mouse"`` (slides in 4 folds), ``"int"`` (slides in 8 folds), ``"zen"`` (10 slides in 3 folds).
    fold_seed
        Which groups share a fold; a published split has its own.
    baselines
        ``"mean"``; ``"ridge"``, ``"knn"``, ``"mlp"`` on principal components of the features; ``"retrieval"`` (as
        BLEEP: mean of the training spots whose expression is nearest in a contrastive space). They see the features of
        a spot as NH2ST does: all fields of view, standardised in the same way. Two endings change what they see:
        ``"ridge_context"`` has the mean of the spots around beside it, ``"ridge@patch"`` what is usual, one standard
        patch for each spot and the features as the encoder gives them.
    table_key, shapes_key, image_key, layer, microns_per_pixel, allow, device, seed, progress
        As in :func:`train`.
    cache_dir, client, checkpoint_dir, resume, trainer_kwargs, settings
        As in :func:`train`.

    Returns
    -------
    Tidy: ``fold`` (the groups left out), ``section``, ``method``, ``gene``, ``metric``, ``value`` and ``ceiling``, the
    noise ceiling of the gene in this section (NaN without raw counts). Metrics are pearson, spearman, mse, mae,
    variance_ratio and ssim, all against the unsmoothed target; where training smooths its target (preset
    ``"paper"``), pearson_smoothed and mse_smoothed are beside them. A constant prediction, as that of ``"mean"``, has
    no correlation (NaN). :func:`summarise` makes one table of it. In the tables only the features of the images are
    kept.

    Raises
    ------
    KeyError, ValueError
        As :func:`train`; unknown baselines; folds that do not fit the number of groups.

    See Also
    --------
    summarise : one row for each method, with intervals.
    paired_differences : one method against the others.
    predict_expression : cross-fitted predictions in the table.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> scores = nh.tl.cross_validate(sdata, baselines=["ridge"], n_genes=20, max_epochs=3, progress=False)
    >>> sorted(scores["method"].unique())
    ['nh2st', 'ridge']
    """
    config = Config.preset(preset, **settings)
    check_one_of(device, DEVICES, argument="device")
    check_trainer(trainer_kwargs)
    wanted = list(dict.fromkeys(baselines))
    for name in wanted:
        check_one_of(name, _baselines.BASELINES, argument="baselines")
    keys = {
        "table_key": table_key,
        "shapes_key": shapes_key,
        "image_key": image_key,
        "microns_per_pixel": microns_per_pixel,
    }
    prepared = collect(sdata, groups=groups, patch_um=patch_um, allow=allow, n_nodes=config.n_nodes, **keys)
    # groups that share a fold are one group for the outer split; inside a fold they are groups of their own
    outer = replace(prepared, groups=outer_groups(prepared.groups, folds, fold_seed))
    config = fields_that_fit(outer, config, seed)
    group_of = {section.name: group for section, group in zip(prepared.sections, prepared.groups, strict=True)}
    used = choose_encoder(config, encoder)
    frozen = used  # what the baselines see
    if config.fine_tune and wanted:
        frozen = get()
        logger.info("NH2ST trains its encoder; the baselines use the frozen features of %r.", frozen.name)
    before, splits = outer_folds(outer, config, seed)
    encoding: dict[str, Any] = {"progress": progress, "cache_dir": cache_dir, "client": client}
    training: dict[str, Any] = {"seed": seed, "device": device, "progress": progress, "resume": resume}
    training["trainer_kwargs"] = trainer_kwargs
    rows = []
    for i, split in enumerate(splits):
        honest = replace(config, smooth=False)
        panel = add_expression(prepared, honest, genes=genes, n_genes=n_genes, layer=layer, splits=[split])
        targets = [section.expression for section in prepared.sections]  # what is measured, never smoothed
        if config.smooth:
            add_expression(prepared, config, genes=panel, n_genes=None, layer=layer)
        if i == 0 or config.stain != "none":  # the colours are those of the training sections
            fit_stain(prepared, config, before[i].train)
            add_images(prepared, config, used, **encoding)
            if frozen is not used:
                add_images(prepared, replace(config, fine_tune=False), frozen, **encoding)
        ready, _ = outer_folds(outer, config, seed)  # the same ones, now with features and expression
        fold = ready[i]
        train_groups = [group_of[section.name] for section in fold.train]
        given = train_groups, panel, config, prepared, used
        model = fit_fold(ready, i, *given, checkpoint_dir=checkpoint_dir, **training)
        if model.interrupted:
            raise KeyboardInterrupt("Cross-validation was interrupted.")
        held_out = [prepared.sections[at] for at, _ in fold.held_out]
        predicted = {"nh2st": [model.predict(section) for section in held_out]}
        if wanted:
            predicted |= _baselines.predict(
                wanted,
                fold.train,
                train_groups,
                held_out,
                standardise=config.standardise == "section",
                dim=frozen.dim,
                seed=seed,
            )
        for j, (at, spots) in enumerate(fold.held_out):
            section = prepared.sections[at]
            spots = spots[section.trainable[spots]]
            ceiling = ceilings(prepared.tables[at], section.rows[spots], panel, layer, config.library)
            for method, values in predicted.items():
                for metric, value in _score(section, spots, targets[at], values[j], config.smooth).items():
                    about = {"fold": fold.name, "section": section.name, "method": method, "gene": panel}
                    rows.append(pd.DataFrame(about | {"metric": metric, "value": value, "ceiling": ceiling}))
    leave_features(prepared)
    return pd.concat(rows, ignore_index=True)


def _score(
    section: Section, spots: np.ndarray, target: np.ndarray | None, predicted: np.ndarray, smoothed: bool
) -> dict[str, np.ndarray]:
    """Every metric (G,) of the predictions (n_spots, G) of some spots, against the unsmoothed target first of all."""
    assert target is not None and section.expression is not None
    pair = target[spots], predicted[spots]
    scores = {name: getattr(metrics, name)(*pair) for name in SCORES}
    scores["ssim"] = metrics.ssim(*pair, section.xy_um[spots], spacing=section.spacing_um)
    if smoothed:
        trained_on = section.expression[spots]
        scores |= {f"{name}_smoothed": getattr(metrics, name)(trained_on, pair[1]) for name in ("pearson", "mse")}
    return scores
