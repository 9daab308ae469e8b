"""``nh.explore``: what its panel shows; the widgets are in ``_explore_widget.py``, the drawing in ``_explore.js``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse import metrics
from nh2st_scverse._constants import FEATURES, KEY, TRUSTED
from nh2st_scverse._keys import Keys
from nh2st_scverse._options import Elements
from nh2st_scverse._validators import check_one_of
from nh2st_scverse.data.checks import in_tissue
from nh2st_scverse.data.expression import to_dense
from nh2st_scverse.data.section import locate_sections
from nh2st_scverse.data.units import Measured, measure
from nh2st_scverse.pl._clusters import MOST_LABELS, labels_of, palette_of
from nh2st_scverse.pl._expression import choose_genes, colour_limits
from nh2st_scverse.pl._figure import Picture, draw_ready
from nh2st_scverse.pl._neighbourhood import Around, look_around, what_the_model_saw
from nh2st_scverse.prediction import find_prediction, read

if TYPE_CHECKING:
    from nh2st_scverse.pl._explore_widget import Explorer

N_MARKERS = 5  # genes that set a spot apart
N_NAMED = 3  # genes of a set without a name that its title lists
COLUMN_CMAP = "cividis"  # of a numeric column: no other map has it by default
Limits = tuple[float, float]


def explore(
    sdata: SpatialData,
    gene: str | Sequence[str] | None = None,
    *,
    key: str = KEY,
    layer: str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    shared: bool = True,
    cmap: str = "viridis",
    uncertainty_cmap: str = "plasma_r",
) -> Explorer:
    """Look through predicted genes in JupyterLab: H&E, measured, predicted and uncertainty side by side.

    Type a part of a gene's name, or walk through the list with the arrow keys; it is sorted by how far each gene is to
    be trusted. Enter takes the first hit. Several genes, ``CD8A, EPCAM`` or ``T cells: CD3E, CD8A``, are shown as one
    set: the mean of their values, with a correlation of its own, as :func:`nh2st_scverse.tl.modules` scores it, and
    without a standard deviation, since how the errors of genes go together is not known. Any column of ``obs``
    (clusters in scanpy's colours, novelty, ...) can be shown beside, and a second section below in the same colours and
    at the same size.

    The wheel zooms all pictures of a section together, dragging moves them, a double click shows all again. A click on
    a spot shows its patch, the patches around it, its values, and the genes that set it apart (only those whose
    held-out correlation is at least 0.3, where it is known). Dragging with the shift key draws a region, one in each
    section; Escape forgets all. Drawing happens in the browser: tens of thousands of spots move without a wait. Keys
    that are pressed in the panel never reach the notebook. A saved notebook keeps a still picture of what the panel
    showed first, for whoever opens it without a kernel.

    Parameters
    ----------
    sdata
        Object with predictions, see :func:`nh2st_scverse.tl.predict_expression`. The uncertainty is shown where they
        were made with ``uncertainty=True``, the measured values where there are any.
    gene
        Gene to begin with, or several as one set. None: the one with the highest held-out correlation.
    key
        Name under which the predictions were written.
    layer
        Layer with the counts that are shown as measured; None means X. They are brought to ``log1p`` of counts per ten
        thousand, the unit of the prediction; logarithms are used as they are.
    table_key
        Table with the predictions. None: the only one that has them.
    shapes_key
        Show only this section. None: all sections of the table, one or two at a time.
    image_key
        H&E image, or a mapping of shapes to images. None: the one under the spots.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    shared
        One colour scale for measured and predicted. In both cases a gene has the same scale in all sections, which
        runs from the 2 % to the 98 % quantile until other limits are chosen.
    cmap, uncertainty_cmap
        Colour maps of measured and predicted, and of the standard deviation.

    Returns
    -------
    The panel, a box of ipywidgets. What it shows can be read and set: ``gene`` (a name, or genes separated by commas),
    ``section``, ``compare`` (the section below, or None), ``column`` of ``obs`` or None, ``spot`` (name in
    ``table.obs_names``, or None), ``limits`` of the colours of measured and predicted (low, high; None, as for each new
    gene: the quantiles), ``cmap``, and ``hypergraph`` (whether it is drawn for the chosen spot). ``panel.spots`` are
    the names of the spots inside the drawn regions. ``panel.write_region("name")`` writes them to ``obs["name"]``, as
    booleans which :func:`nh2st_scverse.tl.region` takes; it refuses a column that no panel wrote.
    ``panel.save("file.png")`` saves what is shown, at 200 dots per inch; so does a button. But for ``write_region``,
    nothing in `sdata` is changed.

    Raises
    ------
    ImportError
        No ipywidgets or anywidget here: ``pip install "nh2st-scverse[lab]"``.
    KeyError
        No prediction under `key`, no such table, layer, section or gene.
    ValueError
        A gene that was not predicted, or no such colour map.

    See Also
    --------
    nh2st_scverse.pl.expression, nh2st_scverse.pl.uncertainty, nh2st_scverse.pl.neighbourhood
    nh2st_scverse.tl.region : what is high or low inside a region.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=3, width_um=1200)
    >>> nh.tl.predict_expression(sdata, uncertainty=True, n_genes=20, max_epochs=3, progress=False)
    >>> panel = nh.explore(sdata)
    >>> panel.gene in sdata["table"].var_names
    True
    >>> panel.compare, panel.column = "section_1_spots", "tissue"
    """
    try:
        from nh2st_scverse.pl._explore_widget import Explorer
    except ImportError as error:
        raise ImportError(
            f"nh.explore needs ipywidgets and anywidget ({error}). Install them with "
            'pip install "nh2st-scverse[lab]", and start JupyterLab again.'
        ) from error
    for name in (cmap, uncertainty_cmap):
        check_one_of(name, list(mpl.colormaps), argument="cmap")
    elements = Elements.of(table_key, shapes_key, image_key, microns_per_pixel)
    shown = Shown(sdata, elements, key=key, layer=layer, shared=shared, uncertainty_cmap=uncertainty_cmap)
    if isinstance(gene, str):
        return Explorer(shown, shown.choose(gene), cmap)
    genes = choose_genes(shown.table, shown.prediction, key, gene)
    return Explorer(shown, Chosen(tuple(genes[:1] if gene is None else dict.fromkeys(genes))), cmap)


@dataclass(frozen=True)
class Chosen:
    """What is shown: a gene, or several as one set."""

    genes: tuple[str, ...]
    label: str = ""  # of a set

    @property
    def text(self) -> str:
        """As a user types it."""
        return (f"{self.label}: " if self.label else "") + ", ".join(self.genes)

    @property
    def title(self) -> str:
        """As a picture calls it."""
        more = len(self.genes) - N_NAMED
        listed = ", ".join(self.genes[:N_NAMED]) + (f" and {more} more" if more > 0 else "")
        return self.label or listed


def split_set(text: str) -> tuple[str, list[str]]:
    """Label and genes of a text such as ``T cells: CD3E, CD8A``."""
    label, _, listed = text.rpartition(":")
    genes = [part.strip() for part in re.split("[,;]", listed)]
    return label.strip(), list(dict.fromkeys(filter(None, genes)))


@dataclass(frozen=True)
class Look:
    """How it is shown."""

    chosen: Chosen
    cmap: str  # of measured and predicted
    limits: Limits | None = None  # of measured and predicted; None: quantiles
    column: str | None = None  # of obs, shown beside


@dataclass(frozen=True)
class Map:
    """One set of values over the spots of one section, and how it is coloured."""

    name: str  # measured, predicted, standard deviation, or a column of obs
    values: np.ndarray  # (n,) float32, NaN where nothing is known; of labels their number
    limits: Limits
    cmap: str = ""
    unit: str = ""
    labels: tuple[str, ...] = ()  # of clusters
    colours: tuple[str, ...] = ()  # of each label


@dataclass(frozen=True)
class Values:
    """Values of what was chosen in all spots of the table, by the name of their map."""

    of: dict[str, np.ndarray]  # (n,)
    units: dict[str, str]
    limits: dict[str, Limits]  # in all sections
    span: Limits  # of the values whose limits can be chosen


class Shown:
    """What an object has to show; read when it is asked for and kept."""

    def __init__(
        self,
        sdata: SpatialData,
        elements: Elements,
        *,
        key: str,
        layer: str | None,
        shared: bool,
        uncertainty_cmap: str,
    ) -> None:
        self.sdata = sdata
        self.key = key
        found = find_prediction(sdata, key, elements.table, recorded=False)
        sections = locate_sections(sdata, replace(elements, table=found), n_nodes=2)
        self.table = sdata.tables[found]
        self.sections = {section.name: section for section in sections}
        self.rows = np.concatenate([section.rows for section in sections])  # all that is shown
        self.prediction = read(self.table, key)
        self.unit = self.prediction.unit
        self.uncertainty_cmap = uncertainty_cmap
        self.patch_um, self._standardise, self._n_similar = what_the_model_saw(self.table, key, sections)
        self._pictures: dict[str, Picture] = {}
        self._features: dict[str, np.ndarray] = {}
        self._scores: dict[frozenset[str], tuple[float, float]] = {}  # of sets
        self._last: tuple[Chosen, Values] | None = None  # two sections and the still ask for the same
        self._measured: Measured | None = None
        if Keys(key).layer in self.table.layers:  # X has something else: what was measured
            columns = self.table.var_names.get_indexer(self.prediction.genes)
            self._measured = measure(self.table, layer, columns, self.unit)
            shared = shared and self._measured.unit == self.unit  # others cannot share the scale
        self.shared = shared

    @cached_property
    def genes(self) -> pd.DataFrame:
        """The panel: correlation ``r``, its ``ceiling``, and the ``share`` of it; NaN where not known."""
        known = {"r": self.prediction.score, "ceiling": self.prediction.ceiling()}
        genes = pd.DataFrame(known, index=pd.Index(self.prediction.genes))
        genes["share"] = (genes["r"] / genes["ceiling"].where(genes["ceiling"] > 0)).clip(-1, 1)
        return genes

    @cached_property
    def by_lower_case(self) -> dict[str, str]:
        """Predicted genes, by how a hasty user types them."""
        return {gene.lower(): gene for gene in self.genes.index}

    def choose(self, text: str) -> Chosen:
        """The gene or the set of a text; KeyError or ValueError for genes that were not predicted."""
        if text in self.genes.index:
            return Chosen((text,))
        label, genes = split_set(text)
        known = tuple(choose_genes(self.table, self.prediction, self.key, genes))
        return Chosen(known, label if len(known) > 1 else "")

    def picture(self, section: str) -> Picture:
        """The H&E and the spots of a section."""
        if section not in self._pictures:
            self._pictures[section] = draw_ready(self.sdata, self.sections[section])
        return self._pictures[section]

    def place(self, spot: str) -> tuple[str, int] | None:
        """Section of a spot and its position there; None where its section is not shown."""
        row = self.table.obs_names.get_loc(spot)
        for name, section in self.sections.items():
            at = np.flatnonzero(section.rows == row)
            if len(at):
                return name, int(at[0])
        return None

    # --- maps ---

    def values(self, chosen: Chosen) -> Values:
        """Measured, predicted and standard deviation, as far as there are any; of a set the means of its genes."""
        if self._last is not None and self._last[0] == chosen:
            return self._last[1]
        at = self.prediction.at(chosen.genes)
        of = {"predicted": self.prediction.mean_of(chosen.genes)}
        units = {"predicted": self.unit}
        if self._measured is not None:
            of = {"measured": self._measured.values(at).mean(axis=1)} | of
            units["measured"] = self._measured.unit
        if self.prediction.std is not None and len(at) == 1:  # how errors of genes go together is not known
            of["standard deviation"], units["standard deviation"] = self.prediction.std[:, at[0]], self.unit
        here = {name: array[self.rows] for name, array in of.items()}
        limits = {name: colour_limits([array], None, None) for name, array in here.items()}
        if self.shared and self._measured is not None:
            limits["measured"] = limits["predicted"] = colour_limits([here["measured"], here["predicted"]], None, None)
        alike = [here[name] for name in ("measured", "predicted") if units.get(name) == self.unit]
        ends = [
            f(array, initial=limits["predicted"][i]) for array in alike for i, f in enumerate((np.nanmin, np.nanmax))
        ]
        self._last = chosen, Values(of, units, limits, (float(min(ends)), float(max(ends))))
        return self._last[1]

    def maps(self, section: str, look: Look) -> list[Map]:
        """What is chosen in one section."""
        values, rows = self.values(look.chosen), self.sections[section].rows
        found = []
        for name, array in values.of.items():
            certain = name != "standard deviation"
            limits = values.limits[name]
            if look.limits is not None and certain and values.units[name] == self.unit:
                limits = look.limits
            cmap = look.cmap if certain else self.uncertainty_cmap
            found.append(Map(name, _floats(array[rows]), limits, cmap, values.units[name]))
        return found if look.column is None else [*found, self.column(section, look.column)]

    def columns(self) -> list[str]:
        """Columns of obs that can be a map: numbers, and labels that can be told apart."""
        obs = self.table.obs
        spots = self.table.uns["spatialdata_attrs"]["instance_key"]
        return [
            str(name)
            for name, values in obs.items()
            if name != spots and values.notna().any() and (_is_number(values) or values.nunique() <= MOST_LABELS)
        ]

    def column(self, section: str, name: str) -> Map:
        """A column of obs in one section."""
        rows, values = self.sections[section].rows, self.table.obs[name]
        if _is_number(values):
            numbers = values.to_numpy(dtype=float, na_value=np.nan)
            return Map(name, _floats(numbers[rows]), colour_limits([numbers[self.rows]], None, None), COLUMN_CMAP)
        labels = labels_of(self.table, name)
        palette = palette_of(self.table, name, labels)
        codes = labels.cat.codes.to_numpy()[rows]
        numbers = np.where(codes < 0, np.nan, codes)
        return Map(
            name,
            _floats(numbers),
            (-0.5, len(palette) - 0.5),
            labels=tuple(palette),
            colours=tuple(palette.values()),
        )

    # --- how far to trust ---

    def trust(self, chosen: Chosen) -> str:
        """How far to trust a gene or a set, in words."""
        genes = self.genes.loc[list(chosen.genes)]
        tissue = "these spots" if self.prediction.foreign else "held-out tissue"
        if len(genes) == 1:
            r, ceiling = genes.iloc[0][["r", "ceiling"]]
            if np.isnan(r):
                return "not scored on held-out tissue"
            return f"r = {r:.2f} on {tissue}" + ("" if np.isnan(ceiling) else f", of {ceiling:.2f} possible")
        alone = "" if genes["r"].isna().all() else f"; its {len(genes)} genes alone {genes['r'].mean():.2f} on {tissue}"
        r, ceiling = self._score(chosen.genes)
        if np.isnan(r):
            return f"a set of {len(genes)} genes, not scored{alone}"
        tissue = "held-out tissue" if self.prediction.cross_fitted else "these spots"
        return f"r = {r:.2f} on {tissue}" + ("" if np.isnan(ceiling) else f", of {ceiling:.2f} possible") + alone

    def _score(self, genes: Sequence[str]) -> tuple[float, float]:
        """Correlation and ceiling of a set, within sections; NaN where nothing of this unit was measured."""
        if self._measured is None or self._measured.unit != self.unit:
            return np.nan, np.nan
        if (which := frozenset(genes)) not in self._scores:
            at = self.prediction.at(genes)
            measured, predicted = self._measured.values(at), self.prediction.values[:, at]
            counts = to_dense(self._measured.as_stored[:, at])
            raw = not np.any(counts % 1)
            scored = np.isfinite(predicted).all(axis=1) & self._measured.counted & in_tissue(self.table.obs)
            found = []
            for section in self.sections.values():
                rows = section.rows[scored[section.rows]]
                if len(rows) >= 3:
                    raw_counts = counts[rows] if raw else None
                    library = self._measured.library[rows]
                    found.append(metrics.set_scores(measured[rows], predicted[rows], raw_counts, library))
            r, ceiling = np.mean(found or [(np.nan, np.nan)], axis=0)
            self._scores[which] = float(r), float(ceiling)
        return self._scores[which]

    # --- one spot ---

    def around(self, section: str, at: int, hypergraph: bool) -> Around:
        """What the model was shown of a spot; its hyperedges only if they are asked for, which costs time."""
        found = self.sections[section]
        if hypergraph and FEATURES in self.table.obsm and section not in self._features:
            features = np.asarray(self.table.obsm[FEATURES], dtype=np.float32)[found.rows]
            from nh2st_scverse.train.tensors import section_features

            self._features[section] = section_features(found, features, self._standardise)
        features_here = self._features.get(section) if hypergraph else None
        return look_around(found, at, self.patch_um, features_here, self._n_similar)

    def markers(self, row: int) -> list[tuple[str, float]]:
        """Trusted genes predicted highest in a spot against the others, in standard deviations."""
        mean, spread = self._spread_of_genes
        z = (self.prediction.values[row] - mean) / spread
        r = self.genes["r"].to_numpy()
        if np.isfinite(r).any():  # else nothing tells which genes to trust
            z = np.where(r >= TRUSTED, z, np.nan)
        best = np.argsort(-np.nan_to_num(z, nan=-np.inf), kind="stable")[:N_MARKERS]
        return [(str(self.genes.index[i]), float(z[i])) for i in best if z[i] > 0]

    @cached_property
    def _spread_of_genes(self) -> tuple[np.ndarray, np.ndarray]:
        values = self.prediction.values[self.rows]
        return np.nanmean(values, axis=0), np.nanstd(values, axis=0) + 1e-6


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _floats(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
