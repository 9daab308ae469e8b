"""``tl.predict_expression``: predictions into a layer of the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nh2st_scverse._constants import KEY
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_allowances, check_name, check_one_of, choose_key
from nh2st_scverse.data.neighbours import interleave, thinned_neighbourhoods
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder, Precomputed, get
from nh2st_scverse.encoders._torch import pick_device
from nh2st_scverse.model import NH2ST, check_residuals
from nh2st_scverse.nn import Config
from nh2st_scverse.pp._grid import GRID, add_grid, make_grid
from nh2st_scverse.prediction import Prediction, check_added, check_free, check_genes, check_size, in_x, write
from nh2st_scverse.tl._cross_fit import cross_fit
from nh2st_scverse.tl._prepare import add_images, border, collect, leave_features
from nh2st_scverse.tl._train import DEVICES, check_trainer


def predict_expression(
    sdata: SpatialData,
    *,
    model: NH2ST | None = None,
    key_added: str = KEY,
    table_added: str | None = None,
    uncertainty: bool = False,
    groups: str | Sequence[str] | Mapping[str, str] | None = None,
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
        Write how far predictions may be off, and how unlike the training tissue a spot looks.
    groups, genes, n_genes, preset, patch_um, layer, checkpoint_dir, resume, trainer_kwargs, settings
        As in :func:`train`; for cross-fitting only.
    encoder
        As in :func:`train`; with a `model` the encoder it was trained with, if that was an object of yours, or where
        precomputed features of the same encoder are here, if that is another key than in training.
    table_key, shapes_key, image_key
        Elements of the object; None means the only candidate.
    cache_dir
        Folder in which features are kept while they are computed: an interrupted encoding goes on where it stopped.
    client
        ``distributed.Client`` of a dask cluster, whose workers then read and encode the patches.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    allow
        Known problems to go on with: ``"coarse"``, ``"off_tissue"``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    seed
        The same seed on the same machine gives the same numbers.
    progress
        Show progress bars.

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
    ``table.layers[key_added + "_std"]``
        With `uncertainty`: standard deviation of each prediction, from the residuals on held-out tissue.
    ``table.var[key_added + "_z50"]``, ``"_z80"``, ``"_z95"``
        With `uncertainty`: that many standard deviations on either side of a prediction hold 50, 80 and 95 % of the
        measured values of held-out tissue.
    ``table.obs[key_added + "_novelty"]``
        With `uncertainty`: how unlike the training tissue a spot looks; 1 is what 5 % of the spots of a training group
        exceed when the other groups judge it. NaN, with a warning, where the encoder was trained too.
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
    if not isinstance(sdata, SpatialData):
        raise TypeError(
            f"Expected one SpatialData object, found {type(sdata).__name__}: call once for each object (with "
            "a model from "
            "nh.tl.train([...]))."
        )
    check_one_of(device, DEVICES, argument="device")
    check_trainer(trainer_kwargs)
    keys = {
        "table_key": table_key,
        "shapes_key": shapes_key,
        "image_key": image_key,
        "microns_per_pixel": microns_per_pixel,
        "allow": allow,
    }
    check_name(key_added, argument="key_added")
    if model is not None and not _is_annotated(sdata, keys):
        table_added = table_added or "table"
    if table_added is not None:
        check_name(table_added, argument="table_added")
        check_added(sdata, table_added, key_added)
    encoding = {"progress": progress, "cache_dir": cache_dir, "client": client}
    if model is not None:
        given = {"groups": groups, "patch_um": patch_um, "layer": layer, "checkpoint_dir": checkpoint_dir, **settings}
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise ValueError(f"{unused} belong to training and have no meaning with a model: pass them to nh.tl.train.")
        _with_model(sdata, model, encoder, keys, key_added, table_added, uncertainty, device, encoding)
        return
    config = Config.preset(preset, **settings)
    cross_fit(
        sdata,
        config,
        keys,
        key_added,
        table_added,
        uncertainty=uncertainty,
        groups=groups,
        genes=genes,
        n_genes=n_genes,
        encoder=encoder,
        patch_um=patch_um,
        layer=layer,
        seed=seed,
        checkpoint_dir=checkpoint_dir,
        encoding=encoding,
        training={"device": device, "progress": progress, "resume": resume, "trainer_kwargs": trainer_kwargs},
    )


def _with_model(
    sdata: SpatialData,
    model: NH2ST,
    encoder: str | Encoder | None,
    keys: dict[str, Any],
    key_added: str,
    table_added: str | None,
    uncertainty: bool,
    device: str,
    encoding: dict[str, Any],
) -> None:
    if uncertainty:
        check_residuals(model)
    used = encoder_of(model, encoder)
    annotated, new = sdata, None  # a grid that is made for a slide without spots
    if not _is_annotated(sdata, keys):
        annotated, new = _annotated(sdata, keys, model.spacing_um)
        if new is not None:  # laid over tissue just now
            allowed = as_allowances(keys["allow"]) | {"off_tissue"}
            keys = keys | {"shapes_key": new[0], "image_key": new[2], "allow": allowed}
    prepared = collect(annotated, patch_um=model.patch_um, n_nodes=model.config.n_nodes, **keys)
    table = prepared.tables[0]
    if annotated is not sdata:
        table.obsm["spatial"] = prepared.sections[0].geometry.pixels()
    elif table_added is None and in_x(table, key_added):
        table_added = next(key for key, one in sdata.tables.items() if one is table)  # predicted before: replaced
        check_added(sdata, table_added, key_added)
    if table_added is None:
        check_size(table)
        check_free(table, key_added)
        check_genes(model.genes, table)
    for section in prepared.sections:
        ratio = model.spacing_um / section.spacing_um
        if ratio > 1.25 and _thin_out(section, annotated.shapes[section.name], ratio):
            continue
        if abs(1 / ratio - 1) > 0.25:
            logger.warning(
                "Spots of %r are %.0f µm apart, those the model was trained on %.0f µm: is microns_per_pixel right?",
                section.name,
                section.spacing_um,
                model.spacing_um,
            )
    prepared.stain = model.stain
    add_images(prepared, model.config, used, patch_px=model.patch_px, **encoding)
    on = pick_device(device)
    predicted = [model.predict(section, on) for section in prepared.sections]
    of = zip(prepared.sections, predicted, strict=True)
    doubts = [model.uncertainty(section, values, on) for section, values in of] if uncertainty else []
    values = np.concatenate(predicted)
    prediction = Prediction(
        genes=model.genes,
        values=values,
        pearson=model.scores["pearson"].to_numpy(),
        embedding=values @ model.components,
        border=border(prepared, model.config),
        about=model.provenance() | {"cross_fitted": False},
        std=np.concatenate([std for std, _ in doubts]) if uncertainty else None,
        widths=model.residuals.widths if uncertainty and model.residuals is not None else None,
        novelty=np.concatenate([novelty for _, novelty in doubts]) if uncertainty else None,
    )
    rows = np.concatenate([section.rows for section in prepared.sections])
    if new is not None:
        add_grid(sdata, *new)
    try:
        write(sdata, table, rows, prediction, key=key_added, table_added=table_added)
    except BaseException:
        if new is not None:
            del sdata.shapes[new[0]]
        raise
    leave_features(prepared)


def _is_annotated(sdata: SpatialData, keys: dict[str, Any]) -> bool:
    """Whether there is a table to write to: of any spots, or of the shapes that are named."""
    regions: list[str] = []
    for table in sdata.tables.values():
        region = table.uns.get("spatialdata_attrs", {}).get("region", [])
        regions += [region] if isinstance(region, str) else list(region)
    new = keys["table_key"] is None and keys["shapes_key"] in sdata.shapes and keys["shapes_key"] not in regions
    return bool(regions) and not new


def _thin_out(section: Section, shapes: gpd.GeoDataFrame, ratio: float) -> bool:
    """Let a grid that is `ratio` times denser than the model's have neighbours at the model's distance.

    False when the shapes are no grid of ``pp.grid``.
    """
    if not {"array_row", "array_col"} <= set(shapes.columns):
        return False
    at = shapes.loc[section.geometry.instances, ["array_row", "array_col"]].to_numpy()
    factor = round(ratio)
    part = interleave(at[:, 0], at[:, 1], factor)
    n_nodes = section.neighbours.nodes.shape[1]
    section.neighbours = thinned_neighbourhoods(
        section.xy_um, factor * section.spacing_um, section.usable, part, n_nodes
    )
    return True


def encoder_of(model: NH2ST, encoder: str | Encoder | None) -> Encoder | None:
    """The encoder that a model was trained with, checked by name and weights; None if the model holds it."""
    if model.config.fine_tune:
        return None
    try:
        used = get(encoder if encoder is not None else model.encoder)
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


def _annotated(
    sdata: SpatialData, keys: dict[str, Any], spacing_um: float
) -> tuple[SpatialData, tuple[str, gpd.GeoDataFrame, str] | None]:
    """The same images and spots, with a table of the spots that has no genes.

    Without spots they are those of a new grid; its name, circles and image are returned too.
    """
    new = None
    if not sdata.shapes and keys["shapes_key"] is None:
        image_key = keys["image_key"]
        if isinstance(image_key, Mapping):
            raise KeyError(f"Expected image_key= to be one image of an object without spots, found {dict(image_key)}.")
        circles, image_key = make_grid(
            sdata, spacing_um=spacing_um, image_key=image_key, microns_per_pixel=keys["microns_per_pixel"]
        )
        taken = {name for _, name, _ in sdata.gen_elements()}
        if GRID in taken:
            raise ValueError(f"The grid would be called {GRID!r}, which is taken: call nh.pp.grid(key_added=) first.")
        new = (GRID, circles, image_key)
    shapes = {new[0]: new[1]} if new else dict(sdata.shapes)
    key = choose_key(shapes, keys["shapes_key"], what="shapes", argument="shapes_key")
    index = shapes[key].index
    obs = pd.DataFrame(
        {"region": pd.Categorical([key] * len(index)), "spot_id": index.to_numpy()}, index=index.astype(str)
    )
    obs.index.name = None
    for column in [
        c for c in ("array_row", "array_col") if c in shapes[key]
    ]:  # a set has another order in every session
        obs[column] = shapes[key][column].to_numpy()
    table = TableModel.parse(AnnData(obs=obs), region=key, region_key="region", instance_key="spot_id")
    return SpatialData(images=dict(sdata.images), shapes={key: shapes[key]}, tables={"table": table}), new
