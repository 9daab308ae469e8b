"""``tl.cross_validate``: NH2ST and baselines on groups that none of them saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse import metrics
from nh2st_scverse._constants import SCORES
from nh2st_scverse._docs import documented
from nh2st_scverse._logging import logger
from nh2st_scverse._options import Elements, Panel, Run, as_seed
from nh2st_scverse._validators import as_sequence, check_one_of
from nh2st_scverse.data.checks import low_scores, raise_or_log
from nh2st_scverse.data.cohort import check_apart, collect
from nh2st_scverse.data.inputs import KeptFeatures
from nh2st_scverse.data.section import Section
from nh2st_scverse.data.targets import Counts, check_panel, choose_panel, measure
from nh2st_scverse.encoders import Encoder, get
from nh2st_scverse.encoders._base import blocks_of
from nh2st_scverse.nn import Config
from nh2st_scverse.nn.config import Preset, Settings, settings_docs
from nh2st_scverse.tl import _baselines
from nh2st_scverse.tl._cross_fit import fit_fold
from nh2st_scverse.tl._evaluate import ceilings, log_totals
from nh2st_scverse.tl._setup import choose_encoder, outer_folds, recipe_for, see, sight_that_fits
from nh2st_scverse.tl._splits import outer_groups
from nh2st_scverse.train.data import Data


@documented(keywords=Settings, settings=settings_docs())
def cross_validate(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    groups: str | Sequence[str] | Mapping[str, str] | None = None,
    folds: int | Sequence[Sequence[str]] | None = None,
    fold_seed: int = 0,
    baselines: Iterable[str] = ("mean", "knn", "ridge", "mlp"),
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
) -> pd.DataFrame:
    """Leave each group out once, and score NH2ST and baselines on it.

    Inside a fold the gene panel, scaling, penalties and the end of training are chosen on the training groups alone.

    Parameters
    ----------
    sdata, groups, genes, n_genes, preset, encoder, patch_um
        As in :func:`train`.
    folds
        None leaves each group out once; a number shuffles the groups into so many folds; a list names the groups of
        each fold, as ``nh.datasets.paper(...).folds`` does for published splits.
    fold_seed
        Which groups share a fold, where `folds` is a number.
    baselines
        ``"mean"``; ``"ridge"``, ``"knn"``, ``"mlp"`` on principal components of the features; ``"retrieval"`` (as
        BLEEP: mean of the training spots whose expression is nearest in a contrastive space). They see the features of
        a spot as NH2ST does: all fields of view, standardised in the same way. Two endings change what they see:
        ``"ridge_context"`` has the mean of the spots around beside it, ``"ridge@patch"`` what is usual, one standard
        patch for each spot and the features as the encoder gives them. Two are controls: ``"composition"`` knows only
        which of ten kinds of tissue a spot is (clusters of the features), ``"position"`` only where in its section it
        lies (a smooth surface).
    table_key, shapes_key, image_key, layer, microns_per_pixel, allow, device, seed, progress
        As in :func:`train`.
    cache_dir, client, checkpoint_dir, resume, trainer_kwargs
        As in :func:`train`.
    settings
        As in :func:`train`:

        $settings

    Returns
    -------
    Tidy: ``fold`` (the groups left out), ``section``, ``method``, ``gene``, ``metric``, ``value`` and ``ceiling``, the
    noise ceiling of the gene in this section (NaN without raw counts). Metrics are pearson, spearman, mse, mae,
    variance_ratio and ssim, all against the unsmoothed target; with raw counts also partial_pearson, what is left of
    the correlation when total counts are taken out; where training smooths its target (preset
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
    listed = [baselines] if isinstance(baselines, str) else baselines
    wanted = list(dict.fromkeys(as_sequence(listed, argument="baselines")))
    fold_seed = as_seed(fold_seed)
    for name in wanted:
        check_one_of(name, _baselines.BASELINES, argument="baselines")
    used = choose_encoder(config, encoder, device)
    seen = used  # by the baselines
    if config.fine_tune and wanted:
        seen = get(device=device)
        logger.info("NH2ST trains its encoder; the baselines use the frozen features of %r.", seen.name)
    cohort = collect(sdata, elements, groups=groups, patch_um=patch_um, n_nodes=config.n_nodes, layer=layer)
    check_apart(cohort, layer)
    # groups that share a fold are one group for the outer split; inside a fold they are groups of their own
    shared = outer_groups([section.group for section in cohort.sections], folds, fold_seed)
    outer = [replace(section, group=group) for section, group in zip(cohort.sections, shared, strict=True)]
    config = sight_that_fits(outer, config, cohort.patch_um, seed, settings)
    outside = outer_folds(outer, config, cohort.patch_um, seed)
    counts = Counts.of(cohort, layer)
    rows = []
    with KeptFeatures(cohort) as kept:
        for i, fold in enumerate(outside):
            panel = choose_panel(counts, genes, n_genes, [fold.train])
            measured = measure(counts, panel, library=config.library)  # never smoothed
            targets = measure(counts, panel, library=config.library, smoothed=True) if config.smooth else measured
            if i == 0 or config.stain != "none":  # the colours are those of the training sections
                recipe = recipe_for(cohort, config, used, fold.train)
                inputs = see(cohort, recipe, config, kept, run)
                frozen = inputs
                if seen is not used:
                    frozen = see(cohort, replace(recipe, encoder=seen), replace(config, fine_tune=False), kept, run)
            data = Data(cohort.sections, inputs, targets, blocks_of(used))
            model = fit_fold(data, outside, i, config, recipe, run)
            if model.interrupted:
                raise KeyboardInterrupt("Cross-validation was interrupted; features of the images are kept.")
            at = [position for position, _ in fold.held_out]
            predicted = {"nh2st": [model.predict(cohort.sections[j], inputs[j], run.torch_device) for j in at]}
            if wanted:
                features = Data(cohort.sections, frozen, targets, blocks_of(seen))
                predicted |= _baselines.predict(
                    wanted,
                    features.take(fold.train),
                    features.whole(fold.held_out),
                    standardise=config.standardise,
                    dim=seen.dim,
                    seed=seed,
                )
            for j, (position, spots) in enumerate(fold.held_out):
                sample, section = cohort.samples[position], cohort.sections[position]
                spots = spots[targets.trainable[position][spots]]
                ceiling = ceilings(sample.table, section.rows[spots], panel, layer, config.library)
                totals = log_totals(sample.table, section.rows[spots], layer)
                about = {"fold": fold.name, "section": section.name, "gene": panel}
                for method, values in predicted.items():
                    pair = measured.values[position][spots], values[j][spots]
                    scores = _score(section, spots, *pair)
                    if totals is not None:
                        scores["partial_pearson"] = metrics.partial_pearson(*pair, totals)
                    if config.smooth:
                        scores |= _smoothed_scores(targets.values[position][spots], pair[1])
                    for metric, value in scores.items():
                        found = {"method": method, "metric": metric, "value": value, "ceiling": ceiling}
                        rows.append(pd.DataFrame(about | found))
    order = ["fold", "section", "method", "gene", "metric", "value", "ceiling"]
    table = pd.concat(rows, ignore_index=True)[order]
    raise_or_log(low_scores(table.query("method == 'nh2st' and metric == 'pearson'")["value"].to_numpy()))
    return table


def _score(section: Section, spots: np.ndarray, target: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric (G,) of the predictions (n, G) of some spots."""
    scores = {name: getattr(metrics, name)(target, predicted) for name in SCORES}
    scores["ssim"] = metrics.ssim(target, predicted, section.xy_um[spots], spacing=section.spacing_um)
    return scores


def _smoothed_scores(target: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (G,) against the smoothed target that was trained on."""
    return {f"{name}_smoothed": getattr(metrics, name)(target, predicted) for name in ("pearson", "mse")}
