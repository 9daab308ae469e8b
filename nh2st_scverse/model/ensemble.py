"""Train a model: one member for each fold of the training groups, and what they say of tissue they never saw."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from nh2st_scverse._logging import logger
from nh2st_scverse._options import Run
from nh2st_scverse.data.folds import Fold, make_folds, some_of
from nh2st_scverse.data.inputs import sight_um
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.encoders._torch import trunk_of
from nh2st_scverse.model.card import Card
from nh2st_scverse.model.nh2st import NH2ST
from nh2st_scverse.model.trust import Trust, principal_genes
from nh2st_scverse.nn import Config
from nh2st_scverse.train.checkpoint import claim, data_hash
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.fit import MOST_SPOTS, Fitted, fit_member, refit_ridges, seeded
from nh2st_scverse.train.progress import progress_bar
from nh2st_scverse.train.scores import gene_pearson, nanmean
from nh2st_scverse.train.trust import Novelty, Residuals


def fit(data: Data, config: Config, card: Card, run: Run, encoder: Encoder, *, name: str = "training") -> NH2ST:
    """Train the members of a model, each without some of the groups.

    Parameters
    ----------
    data
        Sections with inputs and targets.
    config
        Settings.
    card
        What the model is made from.
    run
        Seed, device, checkpoints, and arguments for ``lightning.Trainer``.
    encoder
        What made the features, or gives the trunk that is trained.
    name
        Of the progress bar.

    Returns
    -------
    The model. When the user interrupts, the members trained so far make it.

    Raises
    ------
    KeyboardInterrupt
        The user interrupted before there was one.
    """
    assert data.targets is not None
    folds = make_folds(
        data.sections,
        field_um=sight_um(config, card.patch_um),
        max_folds=config.n_members,
        seed=run.seed,
        strict=False,
    )
    folds = [replace(fold, held_out=some_of(fold.held_out, MOST_SPOTS, run.seed)) for fold in folds]
    folder = run.checkpoint_dir
    if folder is not None:
        about = {
            "config": config.to_dict(),
            "genes": list(data.targets.genes),
            "sections": card.trained_on,
            "data": data_hash(data),
            "encoder": [card.encoder, card.encoder_hash],
            "seed": run.seed,
        }
        claim(folder, about, resume=run.resume)
    fitted: list[Fitted] = []
    with progress_bar(name, run.progress) as on_epoch:
        for i, fold in enumerate(folds):
            try:
                with seeded(run.seed + i):
                    trunk = trunk_of(encoder) if config.fine_tune else None
                one = fit_member(
                    data.take(fold.train),
                    data.whole(fold.held_out),
                    [spots for _, spots in fold.held_out],
                    config,
                    run.but(seed=run.seed + i),
                    trunk=trunk,
                    on_epoch=partial(on_epoch, member=i, members=len(folds)),
                    checkpoint=None if folder is None else folder / f"member_{i}.ckpt",
                )
            except KeyboardInterrupt:  # while the member was prepared
                if not fitted:
                    raise
                break
            if one.history:
                fitted.append(one)
            elif not fitted:
                raise KeyboardInterrupt("Training was interrupted before its first epoch ended: no model.")
            if one.stopped:
                break
    stopped = len(fitted) < len(folds) or fitted[-1].stopped
    if stopped:
        logger.warning("Interrupted: the model is made of the %d of %d members so far.", len(fitted), len(folds))
    members = [one.member for one in fitted]
    if config.ridge:
        refit_ridges(members, data, seed=run.seed)
    predicted, scores, residuals = _held_out(data, folds, fitted)
    everything = np.concatenate(predicted)
    novelty = None if data.has_patches else Novelty.fit(data, run.seed)
    return NH2ST(
        members=members,
        genes=data.targets.genes,
        config=config,
        card=replace(card, interrupted=stopped),
        history=_history(folds, fitted),
        scores=pd.DataFrame({"pearson": scores}, index=pd.Index(data.targets.genes, name="gene")),
        trust=Trust(principal_genes(everything), residuals, novelty),
    )


def _held_out(
    data: Data, folds: list[Fold], fitted: list[Fitted]
) -> tuple[list[np.ndarray], np.ndarray, Residuals | None]:
    """Predictions of held-out spots (n, G) of each section, the scores (G,) of them, and residuals."""
    assert data.targets is not None
    n_genes = len(data.targets.genes)
    predicted, pairs = [], []
    for i in range(len(data.sections)):
        parts = [(np.empty(0, dtype=int), np.empty((0, n_genes), np.float32), np.empty(0, dtype=bool))]
        for fold, one in zip(folds, fitted, strict=False):  # a stopped training has fewer members
            of_fold = zip(fold.held_out, one.predicted, strict=True)
            # a margin that had to shrink stops a member, but scores nothing
            parts += [(spots, p, np.full(len(spots), fold.apart)) for (at, spots), p in of_fold if at == i]
        spots, values, apart = map(np.concatenate, zip(*parts, strict=True))
        known = np.flatnonzero(np.isfinite(values).all(axis=1))
        known = known[np.argsort(spots[known])]
        predicted.append(values[known])
        scored = known[(data.trainable(i)[spots] & apart)[known]]
        if len(scored) > 2:
            pairs.append((values[scored], data.target(i, spots[scored])))
    if not pairs:
        return predicted, np.full(n_genes, np.nan), None
    scores = [gene_pearson(torch.from_numpy(p), torch.from_numpy(t)).numpy() for p, t in pairs]
    residuals = Residuals.fit(*map(np.concatenate, zip(*pairs, strict=True)))
    return predicted, nanmean(np.stack(scores)), residuals


def _history(folds: list[Fold], fitted: list[Fitted]) -> pd.DataFrame:
    """A row for each member and epoch."""
    members = enumerate(zip(folds, fitted, strict=False))
    rows = [pd.DataFrame(list(one.history)).assign(member=i, held_out=fold.name) for i, (fold, one) in members]
    table = pd.concat(rows, ignore_index=True).astype({"epoch": int})
    first = ["member", "held_out", "epoch"]
    return table[first + [c for c in table.columns if c not in first]]
