"""``tl.train``: sections with images and counts in, a model out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spatialdata import SpatialData
from tqdm.auto import tqdm

from nh2st_scverse._validators import check_one_of
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder, get
from nh2st_scverse.model import NH2ST
from nh2st_scverse.nn import Config
from nh2st_scverse.tl._prepare import Prepared, add_expression, add_images, collect, leave_features

DEVICES = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}


def train(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    groups: str | Sequence[str] | Mapping[str, str] | None = None,
    genes: str | Sequence[str] = "highest_mean",
    n_genes: int | None = 250,
    preset: str = "default",
    encoder: str | Encoder = "efficientnet_lite0",
    checkpoint: str | Path | None = None,
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
    trainer_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> NH2ST:
    """Train NH2ST on sections where both image and counts are measured.

    Each member of the model is trained without some of the groups, which decide when its training stops (without
    several groups: without a block of tissue and a margin around it). The model averages its members.

    Parameters
    ----------
    sdata
        One object, a list or a dict of them. Every region that a table annotates is a section.
    groups
        What must be held out together (patient, animal, slide): a name for each object or section, a dict by their
        names, or a column of ``.obs``. None: each section is a group.
    genes
        The panel: ``"highest_mean"``, ``"highly_variable"``, or a list of names.
    n_genes
        Size of a chosen panel; None takes all genes that every section has.
    preset
        ``"default"``, or ``"paper"``: network and training as published, with a ResNet18 trained end to end.
    encoder
        Image encoder of frozen features: a name or an object (see :class:`nh2st_scverse.encoders.Encoder`).
    checkpoint
        For preset ``"paper"``: weights of the trunk (``tenpercent_resnet18.ckpt``); None starts at random.
    patch_um
        Side of a patch in µm; None takes 0.75 of the spot spacing (Visium 75 µm, legacy ST 150 µm).
    table_key, shapes_key, image_key
        Elements of the object; None means the only candidate.
    layer
        Layer with the counts; None means X. Logarithms are noticed and used as they are.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    allow
        Known problems to go on with: ``"coarse"`` (image too coarse for the patch), ``"off_tissue"``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    seed
        The same seed on the same machine gives the same model.
    progress
        Show progress bars.
    trainer_kwargs
        For ``lightning.Trainer``.
    settings
        Fields of :class:`nh2st_scverse.nn.Config` to set otherwise, e.g. ``max_epochs=20``.

    Returns
    -------
    The model. In the tables only ``.obsm["nh2st_features"]`` and ``.uns["nh2st_features"]`` are written: the features
    of the images, which the next call reuses if encoder, patch geometry and image are unchanged.

    Raises
    ------
    KeyError
        Missing or ambiguous elements, layers or columns.
    ValueError
        Spots and image that do not fit, an image too coarse for the patch, unusable counts, duplicated names, an empty
        panel, too little tissue.

    References
    ----------
    Qu et al., "Spatially Gene Expression Prediction using Dual-Scale Contrastive Learning", MICCAI 2025.

    See Also
    --------
    predict_expression : apply the model.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> model = nh.tl.train(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> model.genes[0] in sdata["table"].var_names
    True
    """
    config = Config.preset(preset, **settings)
    check_one_of(device, DEVICES, argument="device")
    keys = {
        "table_key": table_key,
        "shapes_key": shapes_key,
        "image_key": image_key,
        "microns_per_pixel": microns_per_pixel,
    }
    prepared = collect(sdata, groups=groups, patch_um=patch_um, allow=allow, n_nodes=config.n_nodes, **keys)
    panel = add_expression(prepared, config, genes=genes, n_genes=n_genes, layer=layer)
    used = choose_encoder(config, encoder)
    add_images(prepared, config, used, progress=progress)
    model = fit(
        prepared.sections,
        prepared.groups,
        panel,
        config,
        prepared,
        used,
        checkpoint=checkpoint,
        seed=seed,
        device=device,
        progress=progress,
        trainer_kwargs=trainer_kwargs,
    )
    leave_features(prepared)
    return model


def choose_encoder(config: Config, encoder: str | Encoder) -> Encoder | None:
    """The encoder of frozen features, or None when the preset trains a trunk on the patches."""
    return get(encoder) if config.encoder == "frozen" else None


def fit(
    sections: Sequence[Section],
    groups: Sequence[str],
    genes: Sequence[str],
    config: Config,
    prepared: Prepared,
    encoder: Encoder | None,
    *,
    checkpoint: str | Path | None,
    seed: int,
    device: str,
    progress: bool,
    trainer_kwargs: dict[str, Any] | None,
    name: str = "training",
) -> NH2ST:
    """Fit a model on some of the prepared sections, with a progress bar."""
    with progress_bar(config, name, progress) as on_epoch:
        return NH2ST.fit(
            sections,
            groups,
            genes,
            config,
            unit=prepared.unit,
            patch_um=prepared.patch_um,
            encoder="resnet18" if encoder is None else encoder.name,
            encoder_hash="trained" if encoder is None else encoder.weights_hash,
            encoder_dim=512 if encoder is None else encoder.dim,
            checkpoint=checkpoint,
            seed=seed,
            accelerator=DEVICES[device],
            trainer_kwargs=trainer_kwargs,
            on_epoch=on_epoch,
        )


@contextmanager
def progress_bar(config: Config, name: str, show: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    """One line for a whole training: epochs, loss, and the Pearson correlation on the held-out group."""
    with tqdm(desc=name, unit="epoch", mininterval=0.5, dynamic_ncols=True, disable=not show) as bar:

        def on_epoch(row: dict[str, float]) -> None:
            bar.set_postfix(
                epoch=f"{row['epoch'] + 1:.0f}/{config.max_epochs}",
                loss=f"{row['loss']:.3f}",
                held_out_pearson=f"{row['validation_pearson']:.3f}",
                refresh=False,
            )
            bar.update()

        yield on_epoch
