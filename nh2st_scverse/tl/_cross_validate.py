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
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import check_one_of
from nh2st_scverse.encoders import Encoder, get
from nh2st_scverse.nn import Config
from nh2st_scverse.tl._baselines import BASELINES
from nh2st_scverse.tl._evaluate import SCORES
from nh2st_scverse.tl._predict import outer_folds
from nh2st_scverse.tl._prepare import add_expression, add_images, collect, leave_features
from nh2st_scverse.tl._train import DEVICES, choose_encoder, fit
from nh2st_scverse.train.spots import section_features


def cross_validate(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    groups: str | Sequence[str] | Mapping[str, str] | None = None,
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
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    trainer_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Leave each group out once, and score NH2ST and baselines on it.

    Inside a fold the gene panel, scaling, penalties and the end of training are chosen on the training groups alone.
    Baselines get the features that NH2ST gets, all fields of view, standardised in the same way.

    Parameters
    ----------
    sdata, groups, genes, n_genes, preset, encoder, patch_um
        As in :func:`train`.
    baselines
        ``"mean"``, ``"knn"``, ``"ridge"`` (PCA of 256 components and ridge), ``"mlp"``.
    table_key, shapes_key, image_key, layer, microns_per_pixel, allow, device, seed, progress
        As in :func:`train`.
    checkpoint_dir, resume, trainer_kwargs, settings
        As in :func:`train`.

    Returns
    -------
    Tidy: ``fold`` (the group left out), ``section``, ``method``, ``gene``, ``metric`` (pearson, spearman, mse, mae) and
    ``value``. Summarise with ``.groupby(["method", "metric"])["value"].mean()``; a constant prediction, as that of
    ``"mean"``, has no correlation (NaN). In the tables only the features of the images are kept.

    Raises
    ------
    KeyError, ValueError
        As :func:`train`; unknown baselines.

    See Also
    --------
    predict_expression : cross-fitted predictions in the table.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=3, width_um=1200)
    >>> scores = nh.tl.cross_validate(sdata, baselines=["ridge"], n_genes=20, max_epochs=3, progress=False)
    >>> sorted(scores["method"].unique())
    ['nh2st', 'ridge']
    """
    config = Config.preset(preset, **settings)
    check_one_of(device, DEVICES, argument="device")
    wanted = list(baselines)
    for name in wanted:
        check_one_of(name, BASELINES, argument="baselines")
    keys = {
        "table_key": table_key,
        "shapes_key": shapes_key,
        "image_key": image_key,
        "microns_per_pixel": microns_per_pixel,
    }
    prepared = collect(sdata, groups=groups, patch_um=patch_um, allow=allow, n_nodes=config.n_nodes, **keys)
    used = choose_encoder(config, encoder)
    frozen = used  # what the baselines see
    if config.fine_tune and wanted:
        frozen = get()
        logger.info("NH2ST trains its encoder; the baselines use the frozen features of %r.", frozen.name)
    n_folds = len(outer_folds(prepared, config, seed)[0])
    rows = []
    for i in range(n_folds):
        _, splits = outer_folds(prepared, config, seed)
        panel = add_expression(prepared, config, genes=genes, n_genes=n_genes, layer=layer, splits=[splits[i]])
        if i == 0:
            if wanted:
                add_images(prepared, replace(config, fine_tune=False), frozen, progress=progress)
            add_images(prepared, config, used, progress=progress)
        fold = outer_folds(prepared, config, seed)[0][i]
        model = fit(
            fold.train,
            fold.train_groups,
            panel,
            config,
            prepared,
            used,
            seed=seed,
            device=device,
            progress=progress,
            checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir) / f"fold_{i}",
            resume=resume,
            trainer_kwargs=trainer_kwargs,
            name=f"without {fold.name} ({i + 1}/{n_folds})",
        )
        if model.interrupted:
            raise KeyboardInterrupt("Cross-validation was interrupted.")
        standardise = config.standardise == "section"
        if wanted:
            x = np.concatenate([section_features(s, standardise)[s.trainable] for s in fold.train])
            y = np.concatenate([s.expression[s.trainable] for s in fold.train if s.expression is not None])
            each = [int(s.trainable.sum()) for s in fold.train]
            group = np.repeat(fold.train_groups, each)
        for at, spots in fold.held_out:
            section = prepared.sections[at]
            spots = spots[section.trainable[spots]]
            assert section.expression is not None
            measured = section.expression[spots]
            found = {"nh2st": model.predict(section)[spots]}
            for name in wanted:
                x_test = section_features(section, standardise)[spots]
                found[name] = BASELINES[name](x, y, group, x_test, seed)
            for method, predicted in found.items():
                for metric in SCORES:
                    values = getattr(metrics, metric)(measured, predicted)
                    rows.append(
                        pd.DataFrame(
                            {
                                "fold": fold.name,
                                "section": section.name,
                                "method": method,
                                "gene": panel,
                                "metric": metric,
                                "value": values,
                            }
                        )
                    )
    leave_features(prepared)
    return pd.concat(rows, ignore_index=True)
