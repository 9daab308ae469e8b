"""``tl.train``: sections with images and counts in, a model out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from spatialdata import SpatialData

from nh2st_scverse._docs import documented
from nh2st_scverse._options import Elements, Panel, Run
from nh2st_scverse.data.checks import low_scores, raise_or_log
from nh2st_scverse.data.cohort import check_apart, collect
from nh2st_scverse.data.inputs import KeptFeatures
from nh2st_scverse.data.targets import Counts, check_panel, choose_panel, measure
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.encoders._base import blocks_of
from nh2st_scverse.model import NH2ST
from nh2st_scverse.model.ensemble import fit
from nh2st_scverse.nn import Config
from nh2st_scverse.nn.config import Preset, Settings, settings_docs
from nh2st_scverse.tl._setup import card_for, choose_encoder, recipe_for, see, sight_that_fits
from nh2st_scverse.train.data import Data


@documented(keywords=Settings, settings=settings_docs())
def train(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
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
        The panel: ``"highest_mean"``, ``"highly_variable"``, ``"spatially_variable"`` (highest Moran's I on the
        training spots), or a list of names.
    n_genes
        Size of a chosen panel; None takes all genes that every section has.
    preset
        ``"default"``, or ``"paper"``: network and training as published, with a ResNet18 trained end to end.
    encoder
        Image encoder: a name, an object (see :class:`nh2st_scverse.encoders.Encoder`), or a list of those, whose
        features stand side by side: ``[uni, "statistics"]``. None takes
        ``"efficientnet_lite0_stages+statistics+texture"``, or for preset ``"paper"`` a ResNet18 with random
        weights; the paper's own are
        ``nh.encoders.ResNet18("tenpercent_resnet18.ckpt")``. It is frozen unless the preset or ``fine_tune=True``
        trains it, which is ``"efficientnet_lite0"`` then.
    patch_um
        Side of a patch in µm; None takes 0.75 of the spot spacing (Visium 75 µm, legacy ST 150 µm).
    $elements
    layer
        Layer with the counts; None means X. Logarithms are noticed and used as they are.
    $microns_per_pixel
    $allow
    $device
    seed
        The same seed on the same machine gives the same model.
    $progress
    $cache_dir
    $client
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
        the encoder too) or ``compile=True``. Where all sections are one group and `fields` are not chosen, the widest
        are left out if the margin round a held-out block would take too much tissue. With their defaults:

        $settings

    Returns
    -------
    The model. In the tables only ``.obsm["nh2st_features"]`` and ``.uns["nh2st_features"]`` are written: the features
    of the images, which the next call reuses if encoder, patch geometry and image are unchanged. Those of more than
    100,000 places in all are on disk while they are needed, in 16 bits, and left in `cache_dir` alone.

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
    config = sight_that_fits(cohort.sections, config, cohort.patch_um, seed, settings)
    counts = Counts.of(cohort, layer)
    panel = choose_panel(counts, genes, n_genes)
    targets = measure(counts, panel, library=config.library, smoothed=config.smooth)
    del counts  # they may be many
    recipe = recipe_for(cohort, config, used)
    with KeptFeatures(cohort) as kept:
        inputs = see(cohort, recipe, config, kept, run)
        data = Data(cohort.sections, inputs, targets, blocks_of(used))
        model = fit(data, config, card_for(data, recipe, run.seed), run, used)
    raise_or_log(low_scores(model.scores["pearson"].to_numpy()))
    return model
