"""What several tools decide before they begin: the encoder, the recipe of features, how far spots may see."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from nh2st_scverse._logging import logger
from nh2st_scverse._options import Run
from nh2st_scverse._validators import check_name
from nh2st_scverse.data.cohort import Cohort
from nh2st_scverse.data.copies import marks
from nh2st_scverse.data.folds import Fold, Spots, make_folds
from nh2st_scverse.data.inputs import Encoding, KeptFeatures, Recipe, cut_patches, encode, sight_um
from nh2st_scverse.data.patches import overhang
from nh2st_scverse.data.section import Section
from nh2st_scverse.data.stain import fit_reference
from nh2st_scverse.encoders import Encoder, get
from nh2st_scverse.encoders._base import DEFAULT
from nh2st_scverse.model import Card
from nh2st_scverse.nn import Config
from nh2st_scverse.prediction import check_added, check_free, check_genes, check_size
from nh2st_scverse.train.data import Data

SHARE_LEFT = 0.7  # of the training spots that are left without a wider field of view: what a wider one must leave


def check_one_object(sdata: SpatialData) -> None:
    """Raise TypeError for several objects: what is predicted is written into one."""
    if not isinstance(sdata, SpatialData):
        raise TypeError(
            f"Expected one SpatialData object, found {type(sdata).__name__}: call once for each object (with "
            "a model from nh.tl.train([...])), or join them by spatialdata.concatenate(objects, "
            "concatenate_tables=True) and predict each section by models of the others. "
            "A store on disk is read by spatialdata.read_zarr(path)."
        )


def choose_encoder(config: Config, encoder: str | Encoder | Sequence[str | Encoder] | None, device: str) -> Encoder:
    """The encoder given, or that of the preset."""
    if encoder is None and config.fine_tune:  # one network
        encoder = "resnet18" if config.name == "paper" else "efficientnet_lite0"
    return get(DEFAULT if encoder is None else encoder, device=device)


def recipe_for(cohort: Cohort, config: Config, encoder: Encoder, train: Spots | None = None) -> Recipe:
    """How features are made; with the colours of the training sections (None: of all) where settings ask for it.

    Raises
    ------
    ValueError
        The widest field of view is more than twice as wide as the image of a section: it would see glass.
    """
    widest = max(config.fields) * cohort.patch_um
    for section in cohort.sections:
        image_um = max(section.geometry.levels[0].size) * section.geometry.microns_per_pixel
        if widest > 2 * image_um:
            raise ValueError(
                f"Expected fields of view at most twice as wide as the image of section {section.name!r}, "
                f"{image_um:,.0f} µm; found {max(config.fields):g} patches, {widest:,.0f} µm. Pass narrower fields=."
            )
    stain = None
    if config.stain != "none":
        chosen = cohort.sections if train is None else [cohort.sections[i] for i, _ in train]
        stain = fit_reference(chosen, config.stain)
    return Recipe(encoder, cohort.patch_um, config.fields, config.orientations, stain, config.maps)


def see(cohort: Cohort, recipe: Recipe, config: Config, kept: KeptFeatures, run: Run) -> tuple[np.ndarray, ...]:
    """What the model sees of every section: features, or patches for an encoder that is trained."""
    if config.fine_tune:
        return cut_patches(cohort, recipe.patch_um, recipe.encoder.input_size, recipe.stain)
    return encode(cohort, recipe, kept, Encoding(run.progress, run.cache_dir, run.client, spill=True))


def card_for(data: Data, recipe: Recipe, seed: int) -> Card:
    """What a model that is trained on some sections is made from."""
    assert data.targets is not None
    wide = {section.name: section.diameter_um for section in data.sections}
    if max(wide.values()) > 1.25 * min(wide.values()):
        logger.warning(
            "Expression was measured in places of different sizes, %s: what varies with the size is learnt as biology. "
            "Pool bins and cells into spots of one size with nh.pp.pseudospots.",
            {name: f"{um:.0f} µm" for name, um in wide.items()},
        )
    return Card(
        unit=data.targets.unit,
        patch_um=recipe.patch_um,
        spacing_um=float(np.median([section.spacing_um for section in data.sections])),
        spot_um=float(np.median(list(wide.values()))),
        encoder=recipe.encoder.name,
        encoder_hash=recipe.encoder.weights_hash,
        encoder_dim=recipe.encoder.dim or data.inputs[0].shape[1],
        patch_px=recipe.encoder.input_size,
        stain=recipe.stain,
        trained_on={section.name: section.group for section in data.sections},
        tissue={section.name: marks(data.target(i), data.trainable(i)) for i, section in enumerate(data.sections)},
        seed=seed,
    )


def check_place(
    sdata: SpatialData, table: AnnData, key: str, table_added: str | None, genes: Sequence[str] | None = None
) -> None:
    """Raise ValueError when a prediction (of `genes`, where they are known) cannot be written under its names."""
    check_name(key, argument="key_added")
    if table_added is not None:
        check_name(table_added, argument="table_added")
        check_added(sdata, table_added, key)
        return
    check_size(table)
    check_free(table, key)
    if genes is not None:
        check_genes(genes, table)


def rows_of(cohort: Cohort) -> np.ndarray:
    """Rows of the table of all spots, section by section."""
    return np.concatenate([section.rows for section in cohort.sections])


def border(cohort: Cohort, config: Config) -> np.ndarray:
    """Whether the widest patch of each spot reaches over the border of the image: (n,) bool."""
    field_um = cohort.patch_um * max(config.fields)
    return np.concatenate([overhang(section.geometry, field_um) for section in cohort.sections])


def outer_folds(sections: Sequence[Section], config: Config, patch_um: float, seed: int) -> list[Fold]:
    """Folds that are predicted by models trained without them."""
    return make_folds(sections, field_um=sight_um(config, patch_um), seed=seed)


def sight_that_fits(
    sections: Sequence[Section], config: Config, patch_um: float, seed: int, chosen: Container[str]
) -> Config:
    """Where blocks of a group are held out, each spot has its own patches, and no fields that take too much tissue.

    Maps see beyond the window of a spot, and the margin round a held-out block of the widest fields of view may leave
    too little to train on. What the user chose stays. Where whole groups are held out there is no margin.
    """
    if len({section.group for section in sections}) > 1:
        return config
    if "maps" not in chosen:
        config = replace(config, maps="none")
    if "fields" in chosen:
        return config
    wanted = config.fields
    enough = SHARE_LEFT * _fewest_left(sections, replace(config, fields=(min(wanted),)), patch_um, seed)
    while len(config.fields) > 1 and _fewest_left(sections, config, patch_um, seed) < enough:
        config = replace(config, fields=tuple(f for f in config.fields if f < max(config.fields)))
    if config.fields != wanted:
        logger.info(
            "Fields of view of %s patches instead of %s: on sections of this size, the margin of wider ones round a "
            "held-out block takes too much tissue. Several sections in one call are held out whole, without a margin.",
            config.fields,
            wanted,
        )
    return config


def _fewest_left(sections: Sequence[Section], config: Config, patch_um: float, seed: int) -> int:
    """Spots to train on in the fold that has the fewest."""
    try:
        folds = outer_folds(sections, config, patch_um, seed)
    except ValueError:  # nothing is left
        return 0
    return min(sum(len(stay) for _, stay in fold.train) for fold in folds)
