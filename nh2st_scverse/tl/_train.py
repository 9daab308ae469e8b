"""``tl.train``: sections with images and counts in, a model out."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from spatialdata import SpatialData
from tqdm.auto import tqdm

from nh2st_scverse._validators import check_one_of
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder, get
from nh2st_scverse.model import NH2ST
from nh2st_scverse.nn import Config
from nh2st_scverse.tl._prepare import Prepared, add_expression, add_images, collect, fit_stain, leave_features

DEVICES = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}


def train(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
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
        Image encoder: a name or an object (see :class:`nh2st_scverse.encoders.Encoder`). None takes
        ``"efficientnet_lite0"``, or for preset ``"paper"`` a ResNet18 with random weights; the paper's own are
        ``nh.encoders.ResNet18("tenpercent_resnet18.ckpt")``. It is frozen unless the preset or ``fine_tune=True``
        trains it.
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
    cache_dir
        Folder in which features are kept while they are computed: an interrupted encoding goes on where it stopped.
    client
        ``distributed.Client`` of a dask cluster, whose workers then read and encode the patches.
    checkpoint_dir, resume
        Folder in which every epoch leaves a checkpoint; with ``resume=True`` the same call goes on with the training in
        it, or begins one, and gives the model that it would have given without the break: the same weights on the same
        machine and, for a trained encoder, the same number of threads (``torch.get_num_threads()``).
    trainer_kwargs
        For ``lightning.Trainer``, e.g. ``{"accumulate_grad_batches": 4}``, ``{"precision": "16-mixed"}``, or on
        several GPUs ``{"devices": 4, "strategy": "ddp"}`` in a script, ``"ddp_notebook"`` in a notebook; `batch_size`
        is that of one process.
    settings
        Fields of :class:`nh2st_scverse.nn.Config` to set otherwise, e.g. ``max_epochs=20``, ``fine_tune=True`` (train
        the encoder too) or ``compile=True``.

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
    check_trainer(trainer_kwargs)
    keys = {
        "table_key": table_key,
        "shapes_key": shapes_key,
        "image_key": image_key,
        "microns_per_pixel": microns_per_pixel,
    }
    prepared = collect(sdata, groups=groups, patch_um=patch_um, allow=allow, n_nodes=config.n_nodes, **keys)
    panel = add_expression(prepared, config, genes=genes, n_genes=n_genes, layer=layer)
    used = choose_encoder(config, encoder)
    fit_stain(prepared, config, prepared.sections)
    add_images(prepared, config, used, progress=progress, cache_dir=cache_dir, client=client)
    model = fit(
        prepared.sections,
        prepared.groups,
        panel,
        config,
        prepared,
        used,
        seed=seed,
        device=device,
        progress=progress,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        trainer_kwargs=trainer_kwargs,
    )
    leave_features(prepared)
    return model


def check_trainer(trainer_kwargs: Mapping[str, Any] | None) -> None:
    """Raise TypeError when there is a name that ``lightning.Trainer`` does not take, before it is asked."""
    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    unknown = [name for name in trainer_kwargs or {} if name not in known]
    if unknown:
        similar = [found for name in unknown for found in difflib.get_close_matches(str(name), known, n=2)]
        raise TypeError(
            f"Expected trainer_kwargs= with arguments of lightning.Trainer, found {unknown}. "
            + (f"Similar: {similar}." if similar else f"Available: {known}.")
        )


def choose_encoder(config: Config, encoder: str | Encoder | None) -> Encoder:
    """The encoder given, or that of the preset."""
    return get(encoder or ("resnet18" if config.name == "paper" and config.fine_tune else "efficientnet_lite0"))


def fit(
    sections: Sequence[Section],
    groups: Sequence[str],
    genes: Sequence[str],
    config: Config,
    prepared: Prepared,
    encoder: Encoder,
    *,
    seed: int,
    device: str,
    progress: bool,
    checkpoint_dir: str | Path | None,
    resume: bool,
    trainer_kwargs: dict[str, Any] | None,
    name: str = "training",
) -> NH2ST:
    """Fit a model on some of the prepared sections, with a progress bar."""
    with progress_bar(name, progress) as on_epoch:
        return NH2ST.fit(
            sections,
            groups,
            genes,
            config,
            unit=prepared.unit,
            patch_um=prepared.patch_um,
            stain=prepared.stain,
            encoder=encoder,
            seed=seed,
            accelerator=DEVICES[device],
            trainer_kwargs=trainer_kwargs,
            on_epoch=on_epoch,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
        )


@contextmanager
def progress_bar(name: str, show: bool) -> Iterator[Callable[[dict[str, float], int, int, int], None]]:
    """One line for a whole training: epochs, time left at most, terms of the loss, correlation on held-out tissue."""
    show = show and getattr(rank_zero_only, "rank", 0) == 0  # of several processes one tells
    with tqdm(desc=name, unit="epoch", mininterval=0.5, dynamic_ncols=True, disable=not show) as bar:

        def on_epoch(row: dict[str, float], epochs: int, member: int, members: int) -> None:
            # earlier members may have stopped early: what is left is that of this one and of those to come
            bar.total = bar.n + int(epochs - row["epoch"]) + (members - member - 1) * epochs
            terms = {k: v for k, v in row.items() if k not in ("epoch", "loss", "validation_pearson")}
            said = [f"{k.replace('_contrast', '')} {v:.2f}" for k, v in terms.items()]
            bar.set_postfix_str(
                f"member {member + 1}/{members}, {', '.join(said)}, held-out r {row['validation_pearson']:.3f}",
                refresh=False,
            )
            bar.update()

        yield on_epoch
