"""``nh.explore``: what its panel shows; the widgets are in ``_explore_widget.py``, the drawing in ``_explore.js``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse._constants import FEATURES, KEY
from nh2st_scverse._keys import Keys
from nh2st_scverse._options import Elements
from nh2st_scverse._validators import check_one_of
from nh2st_scverse.data.section import locate_sections
from nh2st_scverse.data.units import Measured, measure
from nh2st_scverse.pl._expression import choose_genes, colour_limits
from nh2st_scverse.pl._figure import Picture, draw_ready
from nh2st_scverse.pl._neighbourhood import Around, look_around, what_the_model_saw
from nh2st_scverse.prediction import find_prediction, read

if TYPE_CHECKING:
    from nh2st_scverse.pl._explore_widget import Explorer

N_MARKERS = 5  # genes that set a spot apart


def explore(
    sdata: SpatialData,
    gene: str | None = None,
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

    Type a part of a gene's name, or walk through the list, which is sorted by how far each gene is to be trusted. The
    wheel zooms all pictures together, dragging moves them, a double click shows all again. A click on a spot shows its
    patch, the patches around it, and its values. Drawing happens in the browser: tens of thousands of spots move
    without a wait.

    Parameters
    ----------
    sdata
        Object with predictions, see :func:`nh2st_scverse.tl.predict_expression`. The uncertainty is shown where they
        were made with ``uncertainty=True``, the measured values where there are any.
    gene
        Gene to begin with. None: the one with the highest held-out correlation.
    key
        Name under which the predictions were written.
    layer
        Layer with the counts that are shown as measured; None means X. They are brought to ``log1p`` of counts per ten
        thousand, the unit of the prediction; logarithms are used as they are.
    table_key
        Table with the predictions. None: the only one that has them.
    shapes_key
        Show only this section. None: all sections of the table, one at a time.
    image_key
        H&E image, or a mapping of shapes to images. None: the one under the spots.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    shared
        One colour scale for measured and predicted. In both cases a gene has the same scale in all sections, which
        runs from the 2 % to the 98 % quantile.
    cmap, uncertainty_cmap
        Colour maps of measured and predicted, and of the standard deviation.

    Returns
    -------
    The panel, a box of ipywidgets. Its ``gene``, ``section`` and ``spot`` (name in ``table.obs_names``, or None) say
    what is shown, and can be set. Nothing in `sdata` is changed.

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

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=3, width_um=1200)
    >>> nh.tl.predict_expression(sdata, uncertainty=True, n_genes=20, max_epochs=3, progress=False)
    >>> panel = nh.explore(sdata)
    >>> panel.gene in sdata["table"].var_names
    True
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
    shown = Shown(sdata, elements, key=key, layer=layer, shared=shared, cmap=cmap, uncertainty_cmap=uncertainty_cmap)
    (first,) = choose_genes(shown.table, shown.prediction, key, gene)[:1]
    return Explorer(shown, first)


@dataclass(frozen=True)
class Map:
    """One gene over the spots of one section, and how it is coloured."""

    name: str  # measured, predicted or standard deviation
    values: np.ndarray  # (n,) float32, NaN where nothing is known
    limits: tuple[float, float]
    cmap: str
    unit: str


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
        cmap: str,
        uncertainty_cmap: str,
    ) -> None:
        self.sdata = sdata
        self.key = key
        found = find_prediction(sdata, key, elements.table, recorded=False)
        sections = locate_sections(sdata, replace(elements, table=found))
        self.table = sdata.tables[found]
        self.sections = {section.name: section for section in sections}
        self.rows = np.concatenate([section.rows for section in sections])  # all that is shown
        self.prediction = read(self.table, key)
        self.unit = self.prediction.unit
        self.cmaps = {"measured": cmap, "predicted": cmap, "standard deviation": uncertainty_cmap}
        self.patch_um, self._standardise, self._n_similar = what_the_model_saw(self.table, key, sections)
        self._pictures: dict[str, Picture] = {}
        self._features: dict[str, np.ndarray] = {}
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

    def maps(self, section: str, gene: str) -> list[Map]:
        """One gene in one section: measured, predicted and standard deviation, as far as there are any."""
        (at,) = self.prediction.at([gene])
        values, units = {"predicted": self.prediction.values[:, at]}, {}
        if self._measured is not None:
            values = {"measured": self._measured.values([at])[:, 0]} | values
            units["measured"] = self._measured.unit
        if self.prediction.std is not None:
            values["standard deviation"] = self.prediction.std[:, at]
        limits = {name: colour_limits([array[self.rows]], None, None) for name, array in values.items()}
        if self.shared and self._measured is not None:
            both = colour_limits([values[name][self.rows] for name in ("measured", "predicted")], None, None)
            limits |= {"measured": both, "predicted": both}
        rows = self.sections[section].rows
        return [
            Map(
                name,
                np.ascontiguousarray(array[rows], dtype=np.float32),
                limits[name],
                self.cmaps[name],
                units.get(name, self.unit),
            )
            for name, array in values.items()
        ]

    def trust(self, gene: str) -> str:
        """How far to trust a gene, in words."""
        r, ceiling = self.genes.loc[gene, ["r", "ceiling"]]
        if np.isnan(r):
            return "not scored on held-out tissue"
        tissue = "these spots" if self.prediction.foreign else "held-out tissue"
        return f"r = {r:.2f} on {tissue}" + ("" if np.isnan(ceiling) else f", of {ceiling:.2f} possible")

    def around(self, section: str, at: int) -> Around:
        """What the model was shown of a spot; hyperedges where the table has features."""
        found = self.sections[section]
        if FEATURES in self.table.obsm and section not in self._features:
            features = np.asarray(self.table.obsm[FEATURES], dtype=np.float32)[found.rows]
            from nh2st_scverse.train.tensors import section_features

            self._features[section] = section_features(found, features, self._standardise)
        return look_around(found, at, self.patch_um, self._features.get(section), self._n_similar)

    def markers(self, row: int) -> list[tuple[str, float]]:
        """Genes predicted highest in a spot against the others, in standard deviations."""
        mean, spread = self._spread_of_genes
        z = (self.prediction.values[row] - mean) / spread
        best = np.argsort(-np.nan_to_num(z, nan=-np.inf), kind="stable")[:N_MARKERS]
        return [(str(self.genes.index[i]), float(z[i])) for i in best if z[i] > 0]

    @cached_property
    def _spread_of_genes(self) -> tuple[np.ndarray, np.ndarray]:
        values = self.prediction.values[self.rows]
        return np.nanmean(values, axis=0), np.nanstd(values, axis=0) + 1e-6
