"""The panel of ``nh.explore``: its widgets, and what happens when one of them is used."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from nh2st_scverse._validators import check_one_of
from nh2st_scverse.pl._explore import Chosen, Limits, Look, Map, Shown
from nh2st_scverse.pl._explore_canvas import Canvas, jpeg
from nh2st_scverse.pl._explore_genes import GeneList, Key
from nh2st_scverse.pl._explore_region import inside, write_region
from nh2st_scverse.pl._explore_still import Row, draw_still, zoomed
from nh2st_scverse.pl._figure import SAVED_DPI, finish, read_window
from nh2st_scverse.pl._neighbourhood import draw_around

TILE_PX = 1000  # of the H&E that is sent when the user has zoomed in
STILL_DPI = 75  # of the picture that a notebook keeps: as wide as a page, and small
CMAPS = ("viridis", "magma", "inferno", "cividis", "turbo", "coolwarm", "Reds", "Greys")
NONE = ""  # in a menu: None would leave it blank
NO_KERNEL = "This panel lives as long as its kernel: run the cell again. The picture is what it showed first."


class Explorer(widgets.VBox):
    """The panel of :func:`nh2st_scverse.explore`."""

    gene = traitlets.Unicode()  # or a set of them
    section = traitlets.Unicode()
    compare = traitlets.Unicode(None, allow_none=True)  # a second section
    column = traitlets.Unicode(None, allow_none=True)  # of obs
    spot = traitlets.Unicode(None, allow_none=True)
    limits = traitlets.Tuple(traitlets.Float(), traitlets.Float(), default_value=None, allow_none=True)
    cmap = traitlets.Unicode()
    hypergraph = traitlets.Bool(False)

    def __repr__(self) -> str:
        return f"Explorer(gene={self.gene!r}, section={self.section!r}): a panel for the end of a cell in JupyterLab"

    def __init__(self, shown: Shown, chosen: Chosen, cmap: str) -> None:
        self.shown = shown
        self._quiet = False  # widgets are being set: what they say meanwhile was not chosen
        self._outlines: dict[str, list[float]] = {}  # drawn regions, by section
        self._make_widgets(cmap)
        super().__init__([self._laid_out()])
        self.add_class("nh2st-explore")
        with self.hold_trait_notifications():
            self.gene, self.section, self.cmap = chosen.text, next(iter(shown.sections)), cmap
        self.genes.gene = self.gene
        self._draw_sections()
        self._connect()

    def _make_widgets(self, cmap: str) -> None:
        shown, narrow = self.shown, widgets.Layout(width="auto")
        names = [(name.removesuffix("_spots"), name) for name in shown.sections]
        self.genes = GeneList(shown)
        self.sections = widgets.Dropdown(options=names, layout=narrow)
        self.compared = widgets.Dropdown(options=[("none", NONE), *names], layout=narrow)
        self.columns = widgets.Dropdown(options=self._columns(), layout=narrow)
        self.colours = widgets.Dropdown(options=dict.fromkeys([cmap, *CMAPS]).keys(), layout=narrow)
        self.range = widgets.FloatRangeSlider(readout_format=".2f", step=0.01, layout=narrow)
        self.opacity = widgets.FloatSlider(1.0, min=0, max=1, step=0.05, readout=False, layout=narrow)
        self.hyperedges = widgets.Checkbox(description="hypergraph of the spot", indent=False, layout=narrow)
        self.lasso = widgets.ToggleButton(description="draw a region", tooltip="or drag with shift", layout=narrow)
        self.name = widgets.Text(placeholder="name of the region", layout=widgets.Layout(width="160px"))
        self.write = widgets.Button(description="write to obs", layout=narrow)
        self.told = widgets.HTML().add_class("nh2st-note")
        self.saved = widgets.Button(description="save the picture", layout=narrow)
        self.canvas, self.second = Canvas(), Canvas(leads=False)
        self.around = widgets.Image(format="png", layout=widgets.Layout(max_width="70%", display="none"))
        self.facts = widgets.HTML().add_class("nh2st-spot")

    def _laid_out(self) -> widgets.Widget:
        whole = {"overflow": "visible"}  # no scroll bars
        many = len(self.shown.sections) > 1
        side: list[Any] = [self.genes]
        labelled = {"section": self.sections, "compared with": self.compared} if many else {}
        labelled |= {"column of obs": self.columns, "colours": self.colours, "from, to": self.range}
        labelled |= {"opacity of the spots": self.opacity}
        for text, widget in labelled.items():
            side += [widgets.Label(text), widget]
        left = widgets.VBox(
            [*side, self.hyperedges], layout=widgets.Layout(flex="0 0 200px", padding="0 12px 0 0", **whole)
        )
        tools = [self.lasso, self.name, self.write, self.saved, self.told]
        bar = widgets.HBox(tools, layout=widgets.Layout(flex_flow="row wrap", align_items="center", **whole))
        below = widgets.HBox([self.around, self.facts], layout=widgets.Layout(align_items="flex-start", **whole))
        self.pictures = widgets.VBox([self.canvas], layout=widgets.Layout(**whole))
        right = widgets.VBox([self.pictures, bar, below], layout=widgets.Layout(flex="1 1 0", min_width="0", **whole))
        return widgets.HBox([left, right], layout=widgets.Layout(**whole))

    def _connect(self) -> None:
        def sets(name: str) -> Any:
            def take(change: Any) -> None:
                if not self._quiet:
                    setattr(self, name, None if change["new"] == NONE else change["new"])

            return take

        self.observe(self._show_gene, "gene")
        self.observe(self._show_sections, ["section", "compare"])
        self.observe(self._show_column, "column")
        self.observe(self._show_colours, ["limits", "cmap"])
        self.observe(self._show_spot, ["spot", "hypergraph"])
        self.genes.observe(sets("gene"), "gene")
        for widget, name in {
            self.sections: "section",
            self.compared: "compare",
            self.columns: "column",
            self.colours: "cmap",
            self.range: "limits",
            self.hyperedges: "hypergraph",
        }.items():
            widget.observe(sets(name), "value")
        self.write.on_click(self._write)
        self.saved.on_click(
            lambda _: self.canvas.send({"save": f"{self._look().chosen.title}.png"}, [self._png(SAVED_DPI)])
        )
        for canvas in (self.canvas, self.second):
            widgets.jslink((self.opacity, "value"), (canvas, "opacity"))
            widgets.jslink((self.lasso, "value"), (canvas, "drawing"))
            canvas.observe(self._clicked, "picked")
            canvas.observe(self._zoomed, "view")
            canvas.observe(self._drew, "outline")
        self.canvas.on_msg(lambda _, content, __: self._key(content))

    # --- what may be chosen ---

    @traitlets.validate("gene")
    def _known_gene(self, proposal: Any) -> str:
        return self.shown.choose(proposal["value"]).text

    @traitlets.validate("section")
    def _known_section(self, proposal: Any) -> str:
        if proposal["value"] not in self.shown.sections:
            raise KeyError(f"No section {proposal['value']!r}. Available: {list(self.shown.sections)}.")
        return str(proposal["value"])

    @traitlets.validate("compare")
    def _other_section(self, proposal: Any) -> str | None:
        return None if proposal["value"] is None else self._known_section(proposal)

    @traitlets.validate("column")
    def _known_column(self, proposal: Any) -> str | None:
        name, available = proposal["value"], self.shown.columns()
        if name is not None and name not in available:
            raise KeyError(f"No column {name!r} of numbers or labels in obs. Available: {available}.")
        return None if name is None else str(name)

    @traitlets.validate("limits")
    def _in_order(self, proposal: Any) -> Limits | None:
        limits = proposal["value"]
        if limits is not None and not limits[0] < limits[1]:
            raise ValueError(f"Expected limits= of a low and a higher value, found {limits}.")
        return None if limits is None else (float(limits[0]), float(limits[1]))

    @traitlets.validate("cmap")
    def _known_cmap(self, proposal: Any) -> str:
        check_one_of(proposal["value"], list(mpl.colormaps), argument="cmap")
        return str(proposal["value"])

    @traitlets.validate("spot")
    def _known_spot(self, proposal: Any) -> str | None:
        name = proposal["value"]
        if name is None:
            return None
        if name not in self.shown.table.obs_names:
            raise KeyError(
                f"No spot {name!r} in the table. It has {self.shown.table.n_obs} spots, e.g. "
                f"{list(self.shown.table.obs_names[:3])}."
            )
        if self.shown.place(name) is None:
            raise KeyError(f"Spot {name!r} is in none of the sections {list(self.shown.sections)}.")
        return str(name)

    # --- what is shown changes ---

    def _key(self, content: Key) -> None:
        """A key that was pressed over the panel."""
        if content.get("forget"):
            for canvas in (self.canvas, self.second):
                canvas.outline = []
            self._outlines.clear()
            self._count()
        else:
            self.genes.key(content)

    def _look(self) -> Look:
        return Look(self.shown.choose(self.gene), self.cmap, self.limits, self.column)

    def _canvases(self) -> dict[Canvas, str]:
        """Those that are shown, with their sections."""
        return {self.canvas: self.section} | ({self.second: self.compare} if self.compare else {})

    @contextmanager
    def _silence(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        yield
        self._quiet = before

    def _show_gene(self, _: Any) -> None:
        with self._silence():
            self.genes.gene = self.gene
            self.set_trait("limits", None)  # they were those of the other gene
        self._draw_maps()
        self._tell()

    def _show_colours(self, _: Any) -> None:
        if not self._quiet:
            self._draw_maps()

    def _show_column(self, _: Any) -> None:
        with self._silence():
            self.columns.options, self.columns.value = self._columns(), self.column or NONE
        self._draw_maps()

    def _show_sections(self, change: Any) -> None:
        if change["name"] == "section":
            self.spot = None
        with self._silence():
            self.sections.value, self.compared.value = self.section, self.compare or NONE
        self._draw_sections()
        self.pictures.children = list(self._canvases())
        if self.spot is not None:
            self._show_spot(None)

    def _show_spot(self, _: Any) -> None:
        with self._silence():
            self.hyperedges.value = self.hypergraph
        place = None if self.spot is None else self.shown.place(self.spot)
        if place is not None and place[0] not in self._canvases().values():
            spot = self.spot
            self.section = place[0]  # which forgets the spot
            self.spot = spot
            return
        for canvas, section in self._canvases().items():
            canvas.picked = place[1] if place is not None and section == place[0] else -1
        self._show_around(place)
        self._tell()

    def _clicked(self, change: Any) -> None:
        if change["new"] >= 0:
            rows = self.shown.sections[change["owner"].section].rows
            self.spot = str(self.shown.table.obs_names[rows[change["new"]]])

    def _zoomed(self, change: Any) -> None:
        """The H&E of what is seen, where the picture of the whole section is coarser than it could be."""
        canvas = change["owner"]
        if not canvas.view:
            return
        left, top, right, bottom = canvas.view
        picture, geometry = self.shown.picture(canvas.section), self.shown.sections[canvas.section].geometry
        west, east, south, north = picture.window
        low, high = np.maximum([left, top], [west, north]), np.minimum([right, bottom], [east, south])
        coarse = (picture.extent[1] - picture.extent[0]) / picture.pixels.shape[1]  # µm per pixel
        pixels, extent = np.empty((0, 0, 3), dtype=np.uint8), (0.0, 0.0, 0.0, 0.0)
        if (high > low).all() and right - left < 0.7 * (east - west) and coarse > 1.2 * geometry.microns_per_pixel:
            pixels, extent = read_window(geometry, low, high, TILE_PX)
        with canvas.hold_sync():
            canvas.tile_extent, canvas.tile = list(extent), jpeg(pixels)

    # --- regions ---

    @property
    def spots(self) -> pd.Index:
        """Names of the spots inside the drawn regions, of all sections."""
        return self.shown.table.obs_names[self._rows_drawn()]

    def write_region(self, name: str) -> None:
        """Write whether a spot lies inside the drawn regions to ``obs[name]``; ValueError for a column of others."""
        write_region(self.shown.table, name, self._rows_drawn())
        self._show_column(None)

    def _rows_drawn(self) -> np.ndarray:
        rows = [
            self.shown.sections[name].rows[inside(outline, self.shown.sections[name].xy_um)]
            for name, outline in self._outlines.items()
        ]
        return np.sort(np.concatenate(rows)) if rows else np.empty(0, dtype=int)

    def _drew(self, change: Any) -> None:
        self._outlines.pop(change["owner"].section, None)
        if change["new"]:
            self._outlines[change["owner"].section] = list(change["new"])
        self._count()

    def _count(self) -> None:
        n = len(self._outlines)
        self.told.value = f"{len(self.spots)} spots" + (f" in {n} sections" if n > 1 else "") if n else ""

    def _write(self, _: Any) -> None:
        try:
            self.write_region(self.name.value.strip())
            self.told.value = escape(f"{len(self.spots)} spots are True in obs[{self.name.value.strip()!r}]")
        except ValueError as error:
            self.told.value = escape(str(error))

    # --- drawing ---

    def _columns(self) -> list[tuple[str, str]]:
        return [("none", NONE), *((name, name) for name in self.shown.columns())]

    def _draw_sections(self) -> None:
        windows = [self.shown.picture(name).window for name in self._canvases().values()]
        size = np.max([(right - left, bottom - top) for left, right, bottom, top in windows], axis=0)  # µm, in all
        for (canvas, name), window in zip(self._canvases().items(), windows, strict=True):
            x, y = (window[0] + window[1]) / 2, (window[2] + window[3]) / 2
            of = (x - size[0] / 2, x + size[0] / 2, y + size[1] / 2, y - size[1] / 2)
            with canvas.hold_sync():
                outline = self._outlines.get(name, [])
                canvas.show_section(self.shown.picture(name), self.shown.sections[name].spacing_um, of, outline)
                self._draw_map(canvas, name)
        self._set_range()

    def _draw_maps(self) -> None:
        for canvas, section in self._canvases().items():
            with canvas.hold_sync():
                self._draw_map(canvas, section)
        self._set_range()

    def _draw_map(self, canvas: Canvas, section: str) -> None:
        look = self._look()
        canvas.gene, canvas.heading, canvas.trust = self.gene, look.chosen.title, self.shown.trust(look.chosen)
        canvas.show_maps(self.shown.maps(section, look))

    def _set_range(self) -> None:
        """The sliders: limits within the values, and beyond them where others were chosen."""
        values = self.shown.values(self._look().chosen)
        chosen = self.limits or values.limits["predicted"]
        low, high = min(values.span[0], chosen[0]), max(values.span[1], chosen[1])
        with self._silence(), self.range.hold_sync():
            self.range.min, self.range.max = min(low, self.range.min), max(high, self.range.max)
            self.range.value = chosen
            self.range.min, self.range.max, self.range.step = low, high, (high - low) / 200
            self.colours.options = list(dict.fromkeys([*self.colours.options, self.cmap]))
            self.colours.value = self.cmap

    def _show_around(self, place: tuple[str, int] | None) -> None:
        if place is None or not self.shown.sections[place[0]].usable[place[1]]:
            self.around.layout.display = "none"
            return
        around = self.shown.around(*place, self.hypergraph)
        n = 2 if around.edges is None else 3
        figure = Figure(figsize=(3 * n, 3.1), dpi=120, layout="constrained")  # not pyplot's: shown here only
        draw_around(figure.subplots(1, n), around, str(self.spot))
        self.around.value = _file(figure)
        self.around.layout.display = ""

    def _tell(self) -> None:
        """Values of the chosen spot."""
        if self.spot is None:
            self.facts.value = ""
            return
        shown = self.shown
        section, at = shown.place(self.spot) or (self.section, 0)  # validated
        row = shown.table.obs_names.get_loc(self.spot)
        facts = [(one.name, _value(one, at)) for one in shown.maps(section, self._look())]
        novelty, border = shown.prediction.novelty, shown.prediction.border
        if novelty is not None and np.isfinite(novelty[row]):
            strange = " (unlike the training tissue)" if novelty[row] > 1 else ""
            facts.append(("novelty", f"{novelty[row]:.2f}{strange}"))
        if border is not None and border[row]:
            facts.append(("border", "its patch reaches over the border of the image"))
        if not shown.sections[section].usable[at]:
            facts.append(("patch", "none: the spot lies outside the image"))
        table = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in facts)
        markers = "".join(
            f"<tr><td>{escape(name)}</td><td>{z:+.1f} sd</td></tr>" for name, z in shown.markers(int(row))
        )
        self.facts.value = (
            f"<b>{escape(self.spot)}</b><br>{escape(self.canvas.heading)}, {escape(shown.unit)}<table>{table}</table>"
            + (f"<br>predicted highest against other spots<table>{markers}</table>" if markers else "")
        )

    # --- pictures that stay ---

    def save(self, path: str | Path, *, dpi: float | None = None) -> None:
        """Save what is shown, zoomed as it is; at 200 dots per inch unless `dpi` says another number."""
        figure = self._still(dpi)
        finish(figure, path, dpi)
        plt.close(figure)

    def _still(self, dpi: float | None) -> Figure:
        rows, look = [], self._look()
        for canvas, section in self._canvases().items():
            picture = self.shown.picture(section)
            if canvas.view:
                picture = zoomed(picture, self.shown.sections[section].geometry, canvas.view)
            outline = np.reshape(canvas.outline, (-1, 2))
            rows.append(Row(picture, self.shown.maps(section, look), outline))
        title = f"{look.chosen.title}   {self.shown.trust(look.chosen)}"
        return draw_still(rows, title, opacity=self.opacity.value, dpi=dpi)

    def _png(self, dpi: float) -> bytes:
        figure = self._still(dpi)
        try:
            return _file(figure)
        finally:
            plt.close(figure)

    def _ipython_display_(self) -> None:
        """Show a still picture, which the browser hides while the panel lives, and the panel.

        They are two outputs since JupyterLab, asked for a panel that has no kernel, shows no other kind of the same.
        """
        from IPython.display import publish_display_data

        picture = base64.b64encode(self._png(STILL_DPI)).decode()
        self.canvas.still = picture[len(picture) // 2 :][:60]
        publish_display_data({"image/png": picture, "text/plain": self.canvas.trust})
        publish_display_data(self._repr_mimebundle_() | {"text/plain": NO_KERNEL})


def _value(one: Map, at: int) -> str:
    value = one.values[at]
    if not np.isfinite(value):
        return "not known"
    return one.labels[int(value)] if one.labels else f"{value:.2f}"


def _file(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.05)
    return buffer.getvalue()
