"""``tl.predict_expression``: predictions into a layer of the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from geopandas import GeoDataFrame
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._logging import logger
from nh2st_scverse._options import Elements, Run, as_flag
from nh2st_scverse._validators import check_name, choose_key
from nh2st_scverse.data.cohort import Cohort, Sample, collect, collect_places, elements_of
from nh2st_scverse.data.inputs import Encoding, KeptFeatures, Recipe, cut_patches, encode
from nh2st_scverse.data.neighbours import interleave, ring_neighbourhoods, thinned_neighbourhoods
from nh2st_scverse.data.section import Section, choose_places
from nh2st_scverse.data.technologies import regions_of
from nh2st_scverse.encoders import Encoder, Precomputed, get
from nh2st_scverse.model import NH2ST, check_residuals, novelty_of
from nh2st_scverse.nn.config import settings_docs
from nh2st_scverse.pp._grid import GRID, add_grid, make_grid
from nh2st_scverse.prediction import Prediction, in_x, write
from nh2st_scverse.tl._cross_fit import TrainingOptions, cross_fit
from nh2st_scverse.tl._evaluate import seen_in_training
from nh2st_scverse.tl._setup import border, check_one_object, check_place, rows_of

TOUCHING = 0.7  # of the spacing: spots of an array are narrower than bins and cells
SAME_SIZE = 0.8  # of the width of the places that a model was trained on
FEW_VALUES = 20_000_000  # predicted: of more, it takes too long to look whether the model was trained on them
HALF_ALIKE = 0.5  # of the likeness: below, a prediction is warned of
Grid = tuple[str, GeoDataFrame, str]  # name, circles, and the image they lie on


@documented(keywords=TrainingOptions, settings=settings_docs())
def predict_expression(
    sdata: SpatialData,
    *,
    model: NH2ST | None = None,
    key_added: str = KEY,
    table_added: str | None = None,
    uncertainty: bool = False,
    encoder: str | Encoder | Sequence[str | Encoder] | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    allow: str | Iterable[str] = (),
    device: str = "auto",
    progress: bool = True,
    cache_dir: str | Path | None = None,
    client: Any = None,
    **training: Unpack[TrainingOptions],
) -> None:
    """Predict the expression of every spot from the H&E image, and write it into the table.

    With a `model`, its panel is predicted from the images alone. Without one, the object must have counts and the
    prediction is *cross-fitted*: every spot is predicted by a model that never saw it. Models are then trained without
    one group each (without several groups: without one block of tissue, and without all spots that share a neighbour
    or a pixel with it), so predictions can be compared with the measured counts.

    Parameters
    ----------
    sdata
        Image, spots, and a table that annotates them. With a `model` the table may be missing, and the spots too: a
        grid is then laid over the tissue (:func:`nh2st_scverse.pp.grid`) at the spot spacing of the model, in
        ``sdata.shapes["nh2st_grid"]``.
    model
        From :func:`train` or :meth:`nh2st_scverse.NH2ST.load`; None cross-fits.
    key_added
        Name under which results are written.
    table_added
        Write a new table of this name, with the predicted genes in X, instead of a layer. Shapes that no table
        annotates (a grid of :func:`nh2st_scverse.pp.grid`, named by `shapes_key` where there are other spots) always
        get a new one, ``"table"`` if no other name is given, with the places in pixels of the image in
        ``obsm["spatial"]``. Predicting a slide again replaces it.
    uncertainty
        Write how far predictions may be off.
    training
        `groups`, `genes`, `n_genes`, `preset`, `patch_um`, `layer`, `seed`, `checkpoint_dir`, `resume`,
        `trainer_kwargs` and settings, as in :func:`train`; for cross-fitting only:

        $settings
    encoder
        As in :func:`train`; with a `model` the encoder it was trained with, if that was an object of yours, or where
        precomputed features of the same encoder are here, if that is another key than in training.
    $elements
    $cache_dir
    $client
    $microns_per_pixel
    $allow
    $device
    $progress

    Returns
    -------
    None. X is never touched, nothing is written to disk, and a failure leaves the object as it was. Written are

    ``table.layers[key_added]``
        (n_spots, n_genes) float32 in the unit of the training target (``uns[key_added]["unit"]``); NaN for genes that
        are not predicted and for spots without a usable image.
    ``table.var[key_added]``
        Whether the gene is predicted.
    ``table.var[key_added + "_pearson"]``
        Correlation of the gene on tissue its predictor never saw: how far to trust it.
    ``table.obs[key_added + "_border"]``
        The patch of the spot reaches over the border of the image and is padded.
    ``table.obsm["X_" + key_added]``
        The predicted panel on the axes along which predictions vary, for ``sc.pp.neighbors(use_rep=...)``.
    ``table.obs[key_added + "_novelty"]``
        How unlike the training tissue a spot looks; 1 is what 5 % of the spots of a training group exceed when the
        other groups judge it. Not known where the encoder was trained too.
    ``table.layers[key_added + "_std"]``
        With `uncertainty`: standard deviation of each prediction, from the residuals on held-out tissue.
    ``table.var[key_added + "_z50"]``, ``"_z80"``, ``"_z95"``
        With `uncertainty`: that many standard deviations on either side of a prediction hold 50, 80 and 95 % of the
        measured values of held-out tissue.
    ``table.uns[key_added]``
        Where the prediction comes from: flat values, and the rest as one JSON string.
    ``table.obsm["nh2st_features"]``, ``table.uns["nh2st_features"]``
        Features of the images, reused by the next call if nothing changed.

    Raises
    ------
    KeyError
        Missing or ambiguous elements, layers or columns.
    ValueError
        Spots and image that do not fit, an image too coarse for the patch, unusable counts, duplicated names, a table
        without the genes of the model, another encoder than the model's, a name that holds something else already, a
        layer of more than 16 GB.

    See Also
    --------
    train, evaluate, nh2st_scverse.pp.grid, nh2st_scverse.io.slide

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> nh.tl.predict_expression(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> int(sdata["table"].var["nh2st"].sum())
    30
    """
    check_one_object(sdata)
    for argument, name in {"key_added": key_added, "table_added": table_added}.items():
        if argument == "key_added" or name is not None:
            check_name(name, argument=argument)
    uncertainty = as_flag(uncertainty, argument="uncertainty")
    if model is not None and not isinstance(model, NH2ST):
        raise TypeError(
            f"Expected model= to be a model, found {type(model).__name__}: load one with nh.NH2ST.load(path)."
        )
    if model is None:
        cross_fit(
            sdata,
            key_added=key_added,
            table_added=table_added,
            uncertainty=uncertainty,
            encoder=encoder,
            table_key=table_key,
            shapes_key=shapes_key,
            image_key=image_key,
            microns_per_pixel=microns_per_pixel,
            allow=allow,
            device=device,
            progress=progress,
            cache_dir=cache_dir,
            client=client,
            **training,
        )
        return
    unused = [name for name, value in training.items() if value is not None]
    if unused:
        raise ValueError(f"{unused} belong to training and have no meaning with a model: pass them to nh.tl.train.")
    elements = Elements.of(table_key, shapes_key, image_key, microns_per_pixel, allow)
    run = Run.of(device=device, progress=progress, cache_dir=cache_dir, client=client)
    if uncertainty:
        check_residuals(model)
    used = encoder_of(model, encoder, device)
    grid = None  # made for a slide without spots
    if _is_annotated(sdata, elements):
        cohort = collect(sdata, elements, patch_um=model.patch_um, n_nodes=model.config.n_nodes)
    else:
        cohort, grid = _places(sdata, elements, model)
        table_added = table_added or "table"
    table = cohort.samples[0].table
    if table_added is None and in_x(table, key_added):
        table_added = next(key for key, one in sdata.tables.items() if one is table)  # predicted before: replaced
    check_place(sdata, table, key_added, table_added, model.genes)
    cohort = replace(cohort, samples=tuple(_at_distance(sample, model.spacing_um) for sample in cohort.samples))
    _tell_size(cohort, model)
    with KeptFeatures(cohort) as kept:
        inputs = _see(cohort, model, used, kept, run)
        prediction = _predict(cohort, model, inputs, run.torch_device, uncertainty)
        with _added(sdata, grid):
            write(sdata, table, rows_of(cohort), prediction, key=key_added, table_added=table_added)
        if table_added is not None:
            kept.copy_to(sdata.tables[table_added], table)
    if prediction.values.size <= FEW_VALUES:
        written = table_added or next(name for name, one in sdata.tables.items() if one is table)
        _, known = seen_in_training(sdata, written, key_added, prediction)
        if known:
            logger.warning(
                "The model was trained on the expression of %s: what it says of this tissue is no prediction. "
                "nh.tl.predict_expression(sdata) without model= predicts every spot by a model that never saw it.",
                known,
            )


def _predict(cohort: Cohort, model: NH2ST, inputs: Sequence[np.ndarray], device: str, uncertainty: bool) -> Prediction:
    """What a model says of all sections."""
    std, novelty, widths = None, None, None
    pairs = list(zip(cohort.sections, inputs, strict=True))
    if uncertainty:
        found = [model.uncertainty(section, seen, device) for section, seen in pairs]
        values, std, novelty = (_joined(parts) for parts in zip(*found, strict=True))
        assert model.trust.residuals is not None
        widths = model.trust.residuals.widths
    else:
        values = _joined([model.predict(section, seen, device) for section, seen in pairs])
        if model.trust.novelty is not None:  # a slide unlike the training sections is warned of without being asked
            novelty = np.concatenate([novelty_of(model, section, seen) for section, seen in pairs])
    return Prediction(
        genes=model.genes,
        values=values,
        pearson=model.scores["pearson"].to_numpy(),
        embedding=model.embed(values),
        border=border(cohort, model.config),
        about=model.provenance()
        | {"cross_fitted": False, "spot_um": model.card.spot_um, "elements": elements_of(cohort)}
        | _expected(model, pairs, device),
        std=std,
        widths=widths,
        novelty=novelty,
    )


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Values of all sections; those of one are not copied, they may be many."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _expected(model: NH2ST, pairs: Sequence[tuple[Section, np.ndarray]], device: str) -> dict[str, Any]:
    """What to expect of the sections: the correlation on held-out training tissue, less where they are unlike it."""
    held_out = model.provenance()["mean_pearson"]
    alike = {section.name: model.likeness(section, seen, device) for section, seen in pairs}
    for name, share in alike.items():
        told = name, share, share * held_out, held_out
        if share < HALF_ALIKE:
            logger.warning(
                "Section %r is unlike the training tissue (likeness %.2f): expected correlation %.2f, not %.2f as on "
                "held-out tissue. It is predicted by ridges, which lose less there.",
                *told,
            )
        else:
            logger.info("Section %r: likeness %.2f, expected correlation %.2f (%.2f on held-out tissue).", *told)
    number = sum(section.n_spots for section, _ in pairs)
    mean = sum(alike[section.name] * section.n_spots for section, _ in pairs) / number
    return {"likeness": json.dumps(alike), "expected_pearson": mean * held_out}


def _tell_size(cohort: Cohort, model: NH2ST) -> None:
    """Say where predictions are of another size of place than the one that was measured; a grid is of none."""
    trained = model.card.spot_um
    for sample in cohort.samples:
        section = sample.section
        grid = {"array_row", "array_col"} <= set(sample.sdata.shapes[section.shapes_key].columns)
        if trained and not grid and not SAME_SIZE <= section.diameter_um / trained <= 1 / SAME_SIZE:
            logger.warning(
                "The model was trained on expression in places of %.0f µm, those of %r are %.0f µm wide: predicted is "
                "what a place of %.0f µm round each of them has, in the same unit. Intervals and scores hold for that "
                "size.",
                trained,
                section.name,
                section.diameter_um,
                trained,
            )


@contextmanager
def _added(sdata: SpatialData, grid: Grid | None) -> Iterator[None]:
    """Add a new grid to an object; when what follows fails, it is gone again."""
    if grid is None:
        yield
        return
    add_grid(sdata, *grid)
    try:
        yield
    except BaseException:
        del sdata.shapes[grid[0]]
        raise


def _see(cohort: Cohort, model: NH2ST, encoder: Encoder | None, kept: KeptFeatures, run: Run) -> tuple[np.ndarray, ...]:
    """What the model was trained to see of every section."""
    config = model.config
    if encoder is None:
        return cut_patches(cohort, model.patch_um, model.patch_px, model.stain)
    recipe = Recipe(encoder, model.patch_um, config.fields, config.orientations, model.stain, config.maps)
    return encode(cohort, recipe, kept, Encoding(run.progress, run.cache_dir, run.client, spill=True))


def _at_distance(sample: Sample, spacing_um: float) -> Sample:
    """The sample with neighbours at the distance that the model knows, where its places form a denser grid."""
    section = sample.section
    ratio = spacing_um / section.spacing_um
    shapes = sample.sdata.shapes[section.shapes_key]
    if ratio > 1.25 and {"array_row", "array_col"} <= set(shapes.columns):  # of pp.grid
        array = shapes.loc[section.geometry.instances, ["array_row", "array_col"]].to_numpy()
        factor = round(ratio)
        part = interleave(array[:, 0], array[:, 1], factor)
        wider = factor * section.spacing_um
        n_nodes = section.neighbours.nodes.shape[1]
        neighbours = thinned_neighbourhoods(section.xy_um, wider, section.usable, part, n_nodes)
        return replace(sample, section=replace(section, neighbours=neighbours))
    if ratio > 1.25 and ("radius" not in shapes or section.diameter_um > TOUCHING * section.spacing_um):  # bins, cells
        nodes = section.neighbours.nodes.shape[1]
        neighbours = ring_neighbourhoods(section.xy_um, spacing_um, section.usable, nodes)
        return replace(sample, section=replace(section, neighbours=neighbours))
    if abs(1 / ratio - 1) > 0.25:
        logger.warning(
            "Spots of %r are %.0f µm apart, those the model was trained on %.0f µm: is microns_per_pixel right?",
            section.name,
            section.spacing_um,
            spacing_um,
        )
    return sample


def encoder_of(
    model: NH2ST, encoder: str | Encoder | Sequence[str | Encoder] | None, device: str = "auto"
) -> Encoder | None:
    """The encoder that a model was trained with, checked by name and weights; None if the model holds it."""
    if model.config.fine_tune:
        return None
    try:
        used = get(encoder if encoder is not None else model.encoder, device=device)
    except ValueError:
        raise ValueError(f"The model was trained with encoder {model.encoder!r}: pass it as encoder=.") from None
    if isinstance(used, Precomputed) and model.encoder_hash == used.weights_hash:
        return used  # under any key: obsm of a Visium section, a table of a slide
    if (used.name, used.weights_hash) != (model.encoder, model.encoder_hash):
        raise ValueError(
            f"The model was trained with encoder {model.encoder!r} (weights {model.encoder_hash}), found {used.name!r} "
            f"(weights {used.weights_hash}): pass the same encoder=."
        )
    return used


def _is_annotated(sdata: SpatialData, elements: Elements) -> bool:
    """Whether there is a table to write to: of any spots, or of the shapes that are named."""
    regions: list[str] = []
    for table in sdata.tables.values():
        if table.uns.get("spatialdata_attrs"):
            found, absent = regions_of(sdata, table)
            regions += [region.shapes_key for region in found] + absent
    new = elements.table is None and elements.shapes in sdata.shapes and elements.shapes not in regions
    return bool(regions) and not new


def _places(
    sdata: SpatialData, elements: Elements, model: NH2ST
) -> tuple[Cohort, tuple[str, GeoDataFrame, str] | None]:
    """The places of shapes without a table; without shapes, of a new grid, whose name, circles and image go with it."""
    grid = None
    if not sdata.shapes and elements.shapes is None:
        if isinstance(elements.image, Mapping):
            raise KeyError(
                f"Expected image_key= to be one image of an object without spots, found {dict(elements.image)}."
            )
        if GRID in {name for _, name, _ in sdata.gen_elements()}:
            raise ValueError(f"The grid would be called {GRID!r}, which is taken: call nh.pp.grid(key_added=) first.")
        circles, image_key = make_grid(
            sdata,
            spacing_um=model.spacing_um,
            image_key=elements.image,
            microns_per_pixel=elements.microns_per_pixel,
        )
        grid = GRID, circles, image_key
        # laid over tissue just now
        elements = replace(elements, shapes=GRID, image=image_key, allow=elements.allow | {"off_tissue"})
    shapes = {grid[0]: grid[1]} if grid else dict(sdata.shapes)
    keys = [GRID] if grid else choose_places(sdata, elements)
    key = choose_key(keys, None, what="shapes", argument="shapes_key")
    n_nodes = model.config.n_nodes
    return collect_places(sdata, key, shapes[key], elements, patch_um=model.patch_um, n_nodes=n_nodes), grid
