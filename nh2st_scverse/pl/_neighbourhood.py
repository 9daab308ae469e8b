"""What the model is shown of one spot: its patch, the patches around it, which it joins, and which it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from spatialdata import SpatialData

from nh2st_scverse._constants import FEATURES, KEY, N_NODES
from nh2st_scverse._docs import documented
from nh2st_scverse._options import Elements
from nh2st_scverse.data.cohort import patch_size
from nh2st_scverse.data.patches import iter_patches
from nh2st_scverse.data.section import Section, choose_table, locate_sections
from nh2st_scverse.pl._figure import finish
from nh2st_scverse.prediction import provenance

if TYPE_CHECKING:
    from nh2st_scverse.model import NH2ST
    from nh2st_scverse.nn.config import Standardise

PATCH_PX = 160
N_COLUMNS = 3
OWN, OTHER = "#d1495b", "#1f6f8b"


@documented()
def neighbourhood(
    sdata: SpatialData,
    spot: str | None = None,
    *,
    model: NH2ST | None = None,
    key: str = KEY,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw the neighbourhood of one spot: where its patches lie, the patches, and the hyperedges between them.

    The spot itself is 0, the others are numbered by their distance. A hyperedge joins a patch to the three whose
    features are most similar to its own (a column of the third panel), so that a lymphocyte nest at one corner is not
    averaged with the stroma beside it. They are found on the cached features of the images, whatever the network later
    makes of these.

    With a `model` each patch says how much of the attention of the spot it gets, and the more it gets the wider is its
    frame. This is what the network looked at (:meth:`nh2st_scverse.NH2ST.attention`), not what a patch did to
    a gene: the same share each means that it took the mean of the neighbourhood.

    Parameters
    ----------
    sdata
        Object whose table has features of the images: after :func:`nh2st_scverse.tl.train` or
        :func:`nh2st_scverse.tl.predict_expression`.
    spot
        Name of the spot, of ``table.obs_names``. None: the one in the middle of the first section.
    model
        Draw its attention, and the patches and neighbours that it sees. The features in the table must be those of its
        encoder, as ``nh.tl.predict_expression(sdata, model=model)`` leaves them there.
    key
        Name under which predictions were written, which tells the size of a patch where there is no `model`.
    table_key
        Table that annotates the spots. None: the only one.
    shapes_key
        Section to look in. None: all of the table.
    image_key
        H&E image, or a mapping of shapes to images. None: the one under the spots.
    $microns_per_pixel
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`: the tissue, the patches, the hyperedges.

    Raises
    ------
    KeyError
        No such table, section or spot, or a table without features.
    ValueError
        The spot lies outside the image, or the features are not finite or not those of the `model`. A `model` that
        predicts from the spot alone, as those of preset ``"paper"``, or whose encoder was trained with it.

    See Also
    --------
    check : where spots and patches lie.
    nh2st_scverse.NH2ST.attention : the attention of all spots, as numbers.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> nh.tl.predict_expression(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> nh.pl.neighbourhood(sdata)

    What a model looks at:

    >>> model = nh.tl.train(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> nh.pl.neighbourhood(sdata, model=model)
    """
    if model is not None:
        _check_model(model)
    found = choose_table(sdata, table_key)
    elements = Elements.of(found, shapes_key, image_key, microns_per_pixel)
    sections = locate_sections(sdata, elements, n_nodes=N_NODES if model is None else model.config.n_nodes)
    table = sdata.tables[found]
    if FEATURES not in table.obsm:
        raise KeyError(
            f"Expected features of the images in obsm[{FEATURES!r}] of table {found!r}, found {list(table.obsm)}. They "
            "are left there by nh.tl.predict_expression(sdata) and nh.tl.train(sdata)."
        )
    from nh2st_scverse.train.tensors import section_features

    section, at = _find(table, sections, spot)
    if not section.usable[at]:
        raise ValueError(f"Spot {table.obs_names[section.rows[at]]!r} lies outside the image: it has no patch.")
    features = np.asarray(table.obsm[FEATURES], dtype=np.float32)[section.rows]
    attention = None
    if model is None:
        patch_um, standardise, n_similar = what_the_model_saw(table, key, sections)
    else:
        config = model.config
        patch_um, standardise, n_similar = model.patch_um, config.standardise, config.n_similar
        attention = model.attention(section, features)[at][section.neighbours.mask[at]]
    around = look_around(section, at, patch_um, section_features(section, features, standardise), n_similar)
    around = replace(around, attention=attention)
    fig, axes = plt.subplots(
        1, 3, figsize=figsize or (12.5, 4.2), dpi=dpi, layout="constrained", gridspec_kw={"width_ratios": [1, 1, 1.05]}
    )
    draw_around(axes, around, str(table.obs_names[section.rows[at]]))
    finish(fig, save, dpi)
    return axes if return_ax else None


@dataclass(frozen=True)
class Around:
    """One spot and the spots around it, nearest first, the spot itself at position 0."""

    section: Section
    nodes: np.ndarray  # (k,) positions in the section
    patches: np.ndarray  # (k, PATCH_PX, PATCH_PX, 3) uint8
    patch_um: float
    edges: np.ndarray | None  # (k, k) nodes x hyperedges; None without features
    attention: np.ndarray | None = None  # (k,) sums to 1; None without a model


def what_the_model_saw(table: AnnData, key: str, sections: list[Section]) -> tuple[float, Standardise, int]:
    """Side of a patch in µm, how features were standardised, and patches that a hyperedge joins."""
    about, config = provenance(table, key)
    patch_um = float(about["patch_um"]) if "patch_um" in about else patch_size(sections)
    return patch_um, cast("Standardise", config.get("standardise", "section")), int(config.get("n_similar", 3))


def _check_model(model: NH2ST) -> None:
    """Refuse what has no attention, or none that the features in a table could give."""
    from nh2st_scverse.model import NH2ST, check_context

    if not isinstance(model, NH2ST):
        raise TypeError(f"Expected model= to be an NH2ST model, from nh.tl.train or NH2ST.load, found {model!r}.")
    check_context(model)
    if model.config.fine_tune:
        raise ValueError(
            "The encoder of this model was trained with it: it looks at patches, and the table holds no features of "
            "it. Expected a model with fine_tune=False, or none."
        )


def look_around(
    section: Section, at: int, patch_um: float, features: np.ndarray | None = None, n_similar: int = 3
) -> Around:
    """The patches of a spot's neighbourhood, and with the features (n, F) of its section the hyperedges."""
    nodes = section.neighbours.nodes[at][section.neighbours.mask[at]]
    edges = None
    if features is not None:
        import torch

        from nh2st_scverse.nn import incidence

        there = torch.ones(1, len(nodes), dtype=torch.bool)
        edges = incidence(torch.from_numpy(features[nodes])[None], there, n_similar)[0].numpy()
    patches = np.zeros((len(nodes), PATCH_PX, PATCH_PX, 3), dtype=np.uint8)
    for which, cut in iter_patches(section.geometry, nodes, size_um=patch_um, size_px=PATCH_PX):
        patches[[int(np.flatnonzero(nodes == w)[0]) for w in which]] = cut
    return Around(section, nodes, patches, patch_um, edges)


def draw_around(axes: Sequence[Axes], around: Around, name: str) -> None:
    """The tissue, the patches, and on a third axes the hyperedges."""
    tissue, montage = axes[:2]
    _draw_tissue(tissue, around)
    tissue.set_title(f"{name}  {around.section.name.removesuffix('_spots')}", fontsize="medium")
    gap = 6
    side = PATCH_PX + gap
    n_rows = -(-max(N_NODES, len(around.nodes)) // N_COLUMNS)
    pixels = np.full((n_rows * side - gap, N_COLUMNS * side - gap, 3), 255, dtype=np.uint8)
    for i, patch in enumerate(around.patches):
        y, x = i // N_COLUMNS * side, i % N_COLUMNS * side
        pixels[y : y + PATCH_PX, x : x + PATCH_PX] = patch
        _number(montage, i, x + 0.12 * PATCH_PX, y + 0.14 * PATCH_PX)
        if around.attention is not None:
            _draw_share(montage, i, around.attention[i], _line_widths(around)[i], x, y)
    montage.imshow(pixels)
    montage.set_axis_off()
    title = f"patches of {around.patch_um:g} µm, by distance"
    if around.attention is not None:
        title = f"attention to patches of {around.patch_um:g} µm ({100 / len(around.nodes):.0f} % if equal)"
    montage.set_title(title, fontsize="medium")
    if around.edges is not None:
        _draw_hyperedges(axes[2], around.edges)


def _find(table: AnnData, sections: list[Section], spot: str | None) -> tuple[Section, int]:
    """Section of a spot, and its position there."""
    if spot is None:
        xy = sections[0].xy_um
        away = np.linalg.norm(xy - (xy.min(axis=0) + xy.max(axis=0)) / 2, axis=1)
        return sections[0], int(np.argmin(np.where(sections[0].usable, away, np.inf)))
    if spot not in table.obs_names:
        raise KeyError(f"No spot {spot!r} in the table. It has {table.n_obs} spots, e.g. {list(table.obs_names[:3])}.")
    row = table.obs_names.get_loc(spot)
    for section in sections:
        if row in section.rows:
            return section, int(np.flatnonzero(section.rows == row)[0])
    raise KeyError(f"Spot {spot!r} is in none of the sections {[section.name for section in sections]}.")


def _draw_tissue(ax: Axes, around: Around) -> None:
    """The H&E around the spot in µm from it, with a numbered frame round each patch."""
    section, nodes, patch_um = around.section, around.nodes, around.patch_um
    widths = _line_widths(around)
    xy = section.xy_um
    away = xy[nodes] - xy[nodes[0]]
    reach = float(np.abs(away).max() + 0.75 * patch_um)
    for _, cut in iter_patches(section.geometry, nodes[:1], size_um=2 * reach, size_px=3 * PATCH_PX):
        ax.imshow(cut[0], extent=(-reach, reach, reach, -reach))
    for i in range(len(nodes))[::-1]:
        x, y = away[i]
        ax.add_patch(
            Rectangle(
                (x - patch_um / 2, y - patch_um / 2),
                patch_um,
                patch_um,
                fill=False,
                edgecolor=OTHER if i else OWN,
                linewidth=widths[i],
            )
        )
        _number(ax, i, x, y)
    ax.set(xlabel="µm from the spot", aspect="equal", xlim=(-reach, reach), ylim=(reach, -reach))
    ax.spines[["top", "right"]].set_visible(False)


def _line_widths(around: Around) -> np.ndarray:
    """Of the frames, in points: in proportion to the attention up to 8, 2 where all patches get the same."""
    if around.attention is None:
        return np.where(np.arange(len(around.nodes)) == 0, 2.2, 1.4)
    return np.clip(2 * around.attention * len(around.nodes), 0.4, 8)


def _draw_share(ax: Axes, i: int, share: float, width: float, x: float, y: float) -> None:
    """The part of the attention that a patch gets in percent, and a frame as wide as that on the tissue."""
    colour = OWN if i == 0 else OTHER
    inside = 1.2 * width  # half of the line in pixels of the patch, at the usual size of the figure
    side = PATCH_PX - 2 * inside
    ax.add_patch(Rectangle((x + inside, y + inside), side, side, fill=False, edgecolor=colour, linewidth=width))
    ax.text(
        x + PATCH_PX - 8,
        y + PATCH_PX - 8,
        f"{100 * share:.0f} %",
        color=colour,
        ha="right",
        va="bottom",
        fontweight="bold",
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _number(ax: Axes, i: int, x: float, y: float) -> None:
    ax.text(
        x,
        y,
        str(i),
        color=OWN if i == 0 else OTHER,
        ha="center",
        va="center",
        fontweight="bold",
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _draw_hyperedges(ax: Axes, edges: np.ndarray) -> None:
    """One column for each hyperedge: a large dot for the patch it belongs to, smaller ones for those it joins."""
    n = len(edges)
    style: dict[str, Any] = {"color": OTHER, "linewidths": 0, "zorder": 2}
    for edge in range(n):
        joined = np.flatnonzero(edges[:, edge])
        colour = OWN if edge == 0 else OTHER
        ax.plot([edge, edge], [joined.min(), joined.max()], color=colour, linewidth=1.2, alpha=0.5, zorder=1)
        others = joined[joined != edge]
        ax.scatter(np.full(len(others), edge), others, s=50, **style | {"color": colour})
        ax.scatter([edge], [edge], s=130, **style | {"color": colour})
    ax.set(
        xticks=range(n),
        yticks=range(n),
        xlabel="hyperedge of patch",
        ylabel="patch",
        xlim=(-0.6, n - 0.4),
        ylim=(n - 0.4, -0.6),
        aspect="equal",
    )
    degree = edges.sum(axis=1).astype(int)
    ax.set_title(f"hyperedges: patch 0 is in {degree[0]} of {n}", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
