"""The widgets of ``nh.explore``; the only file that needs the extra ``lab``."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from nh2st_scverse.pl._explore import Shown
from nh2st_scverse.pl._expression import choose_genes, close_names
from nh2st_scverse.pl._figure import FAINTNESS, read_window, section_title
from nh2st_scverse.pl._neighbourhood import draw_around

HERE = Path(__file__).parent
TILE_PX = 1000  # of the H&E that is sent when the user has zoomed in
ORDERS = {"held-out correlation": "r", "share of the ceiling": "share", "name": None}


class Canvas(anywidget.AnyWidget):
    """The pictures: drawn, zoomed and clicked in the browser."""

    _esm = HERE / "_explore.js"
    _css = HERE / "_explore.css"

    section = traitlets.Unicode().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    gene = traitlets.Unicode().tag(sync=True)
    trust = traitlets.Unicode().tag(sync=True)
    image = traitlets.Bytes().tag(sync=True)  # JPEG
    image_extent = traitlets.List(traitlets.Float()).tag(sync=True)  # µm: left, right, bottom, top
    window = traitlets.List(traitlets.Float()).tag(sync=True)  # µm: left, right, bottom, top of the whole section
    xy = traitlets.Bytes().tag(sync=True)  # (n, 2) float32, µm
    radius = traitlets.Bytes().tag(sync=True)  # (n,) float32, µm
    spacing = traitlets.Float().tag(sync=True)  # µm between adjacent spots
    values = traitlets.Bytes().tag(sync=True)  # (maps, n) float32
    maps = traitlets.List(traitlets.Dict()).tag(sync=True)  # name, limits, colour map and unit of each
    colours = traitlets.Dict().tag(sync=True)  # 256 colours of each colour map
    contrast = traitlets.Float(FAINTNESS).tag(sync=True)  # of the H&E under spots
    opacity = traitlets.Float(1.0).tag(sync=True)  # of the spots
    picked = traitlets.Int(-1).tag(sync=True)  # position of the chosen spot in the section
    view = traitlets.List(traitlets.Float()).tag(sync=True)  # µm: left, top, right, bottom of what is seen
    tile = traitlets.Bytes().tag(sync=True)  # JPEG of what is seen, sharper than `image`
    tile_extent = traitlets.List(traitlets.Float()).tag(sync=True)


class Explorer(widgets.VBox):
    """The panel of :func:`nh2st_scverse.explore`."""

    gene = traitlets.Unicode()
    section = traitlets.Unicode()
    spot = traitlets.Unicode(None, allow_none=True)

    def __init__(self, shown: Shown, gene: str) -> None:
        self.shown = shown
        self._listing = False  # the list is being filled: what it selects meanwhile was not chosen
        narrow = widgets.Layout(width="auto")
        self.search = widgets.Text(placeholder="find a gene", layout=narrow)
        orders = {k: v for k, v in ORDERS.items() if v != "share" or shown.genes["share"].notna().any()}
        self.order = widgets.Dropdown(options=orders, value="r", layout=narrow)
        self.list = widgets.Select(options=[], rows=20, layout=narrow)
        self.note = widgets.HTML(layout=narrow).add_class("nh2st-note")
        self.sections = widgets.Dropdown(
            options=[(name.removesuffix("_spots"), name) for name in shown.sections], layout=narrow
        )
        self.opacity = widgets.FloatSlider(1.0, min=0, max=1, step=0.05, readout=False, layout=narrow)
        self.canvas = Canvas(colours={name: _colours(name) for name in sorted(set(shown.cmaps.values()))})
        self.around = widgets.Image(format="png", layout=widgets.Layout(max_width="70%", display="none"))
        self.facts = widgets.HTML().add_class("nh2st-spot")

        label = widgets.Label
        side: list[Any] = [self.search, self.note, label("sorted by"), self.order, self.list]
        if len(shown.sections) > 1:
            side += [label("section"), self.sections]
        side += [label("opacity of the spots"), self.opacity]
        whole = {"overflow": "visible"}  # no scroll bars
        left = widgets.VBox(side, layout=widgets.Layout(flex="0 0 200px", padding="0 12px 0 0", **whole))
        below = widgets.HBox([self.around, self.facts], layout=widgets.Layout(align_items="flex-start", **whole))
        right = widgets.VBox([self.canvas, below], layout=widgets.Layout(flex="1 1 0", min_width="0", **whole))
        super().__init__([widgets.HBox([left, right], layout=widgets.Layout(**whole))])
        self.add_class("nh2st-explore")

        with self.hold_trait_notifications():
            self.gene, self.section = gene, next(iter(shown.sections))
        self._fill()
        self._draw_section()
        widgets.jslink((self.opacity, "value"), (self.canvas, "opacity"))
        self.observe(self._show_gene, "gene")
        self.observe(self._show_section, "section")
        self.observe(self._show_spot, "spot")
        self.search.observe(self._typed, "value")
        self.order.observe(lambda _: self._fill(), "value")
        self.list.observe(self._listed, "value")
        self.sections.observe(lambda change: setattr(self, "section", change["new"]), "value")
        self.canvas.observe(self._clicked, "picked")
        self.canvas.observe(self._zoomed, "view")

    @traitlets.validate("gene")
    def _known_gene(self, proposal: Any) -> str:
        return choose_genes(self.shown.table, self.shown.prediction, self.shown.key, proposal["value"])[0]

    @traitlets.validate("section")
    def _known_section(self, proposal: Any) -> str:
        if proposal["value"] not in self.shown.sections:
            raise KeyError(f"No section {proposal['value']!r}. Available: {list(self.shown.sections)}.")
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

    # --- the list of genes ---

    def _fill(self) -> None:
        """Genes that match the search, in the chosen order."""
        genes = self.shown.genes
        text = self.search.value.strip().lower()
        found = genes[[text in name.lower() for name in genes.index]] if text else genes
        if self.order.value is None:
            found = found.sort_index(key=lambda names: names.str.lower())
        else:
            found = found.sort_values(self.order.value, ascending=False, kind="stable")
        wide = max(map(len, found.index), default=0)
        self._listing = True
        self.list.options = [
            (f"{name:<{wide}} {_score(r, ceiling)}".replace(" ", "\u00a0"), name)
            for name, r, ceiling in zip(found.index, found["r"], found["ceiling"], strict=True)
        ]
        self.list.value = self.gene if self.gene in found.index else None
        self._listing = False
        self.note.value = escape(f"{len(found)} of {len(genes)} genes" if len(found) else self._none_found(text))

    def _none_found(self, text: str) -> str:
        table = self.shown.table
        measured = [str(name) for name in table.var_names if name.lower() == text]
        if measured:
            return f"{measured[0]} is measured but was not predicted"
        close = close_names(text, self.shown.genes.index.to_numpy())
        return "no such gene" + (f"; did you mean {', '.join(close)}?" if close else "")

    def _typed(self, _: Any) -> None:
        text = self.search.value.strip().lower()
        self._fill()
        found = [name for _, name in self.list.options]
        exact = [name for name in found if name.lower() == text] or (found if len(found) == 1 else [])
        if exact:
            self.gene = exact[0]

    def _listed(self, change: Any) -> None:
        if change["new"] is not None and not self._listing:
            self.gene = change["new"]

    # --- what is shown changes ---

    def _show_gene(self, _: Any) -> None:
        self._listing = True
        if self.gene in [name for _, name in self.list.options]:
            self.list.value = self.gene
        self._listing = False
        with self.canvas.hold_sync():
            self._draw_gene()
        self._tell()

    def _show_section(self, _: Any) -> None:
        self.spot = None
        self.sections.value = self.section
        self._draw_section()

    def _show_spot(self, _: Any) -> None:
        if self.spot is None:
            self.canvas.picked = -1
            self.around.layout.display = "none"
            self._tell()
            return
        place = self.shown.place(self.spot)
        assert place is not None  # validated
        name, at = place
        if name != self.section:
            spot = self.spot
            self.section = name  # which forgets the spot
            self.spot = spot
            return
        self.canvas.picked = at
        self._show_around(name, at)
        self._tell()

    def _clicked(self, change: Any) -> None:
        if change["new"] >= 0:
            rows = self.shown.sections[self.section].rows
            self.spot = str(self.shown.table.obs_names[rows[change["new"]]])

    def _zoomed(self, _: Any) -> None:
        """The H&E of what is seen, where the picture of the whole section is coarser than it could be."""
        left, top, right, bottom = self.canvas.view
        picture, geometry = self.shown.picture(self.section), self.shown.sections[self.section].geometry
        west, east, south, north = picture.window
        low, high = np.maximum([left, top], [west, north]), np.minimum([right, bottom], [east, south])
        coarse = (picture.extent[1] - picture.extent[0]) / picture.pixels.shape[1]  # µm per pixel
        pixels, extent = np.empty((0, 0, 3), dtype=np.uint8), (0.0, 0.0, 0.0, 0.0)
        if (high > low).all() and right - left < 0.7 * (east - west) and coarse > 1.2 * geometry.microns_per_pixel:
            pixels, extent = read_window(geometry, low, high, TILE_PX)
        with self.canvas.hold_sync():
            self.canvas.tile_extent, self.canvas.tile = list(extent), _jpeg(pixels) if pixels.size else b""

    # --- drawing ---

    def _draw_section(self) -> None:
        picture = self.shown.picture(self.section)
        canvas = self.canvas
        with canvas.hold_sync():
            canvas.section, canvas.title = self.section, f"H&E  {section_title(picture)}"
            canvas.image, canvas.image_extent = _jpeg(picture.pixels), list(picture.extent)
            canvas.window = list(picture.window)
            canvas.xy, canvas.radius = (a.astype(np.float32).tobytes() for a in (picture.xy, picture.radius))
            canvas.spacing = float(self.shown.sections[self.section].spacing_um)
            canvas.tile, canvas.picked = b"", -1
            self._draw_gene()

    def _draw_gene(self) -> None:
        maps = self.shown.maps(self.section, self.gene)
        self.canvas.gene, self.canvas.trust = self.gene, self.shown.trust(self.gene)
        self.canvas.maps = [
            {
                "name": one.name,
                "limits": list(map(float, one.limits)),
                "beyond": [bool((one.values < one.limits[0]).any()), bool((one.values > one.limits[1]).any())],
                "cmap": one.cmap,
                "unit": one.unit,
            }
            for one in maps
        ]
        self.canvas.values = np.concatenate([one.values for one in maps]).tobytes()

    def _show_around(self, section: str, at: int) -> None:
        if not self.shown.sections[section].usable[at]:
            self.around.layout.display = "none"
            return
        around = self.shown.around(section, at)
        n = 2 if around.edges is None else 3
        figure = Figure(figsize=(3 * n, 3.1), dpi=120, layout="constrained")  # not pyplot's: shown here only
        draw_around(figure.subplots(1, n), around, str(self.spot))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.05)
        self.around.value = buffer.getvalue()
        self.around.layout.display = ""

    def _tell(self) -> None:
        """Values of the chosen spot."""
        if self.spot is None:
            self.facts.value = ""
            return
        shown, at = self.shown, self.canvas.picked
        row = shown.table.obs_names.get_loc(self.spot)
        facts = [
            (one.name, f"{one.values[at]:.2f}" if np.isfinite(one.values[at]) else "not known")
            for one in shown.maps(self.section, self.gene)
        ]
        novelty, border = shown.prediction.novelty, shown.prediction.border
        if novelty is not None and np.isfinite(novelty[row]):
            strange = " (unlike the training tissue)" if novelty[row] > 1 else ""
            facts.append(("novelty", f"{novelty[row]:.2f}{strange}"))
        if border is not None and border[row]:
            facts.append(("border", "its patch reaches over the border of the image"))
        if not shown.sections[self.section].usable[at]:
            facts.append(("patch", "none: the spot lies outside the image"))
        table = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in facts)
        markers = "".join(
            f"<tr><td>{escape(name)}</td><td>{z:+.1f} sd</td></tr>" for name, z in shown.markers(int(row))
        )
        self.facts.value = (
            f"<b>{escape(self.spot)}</b><br>{escape(self.gene)}, {escape(shown.unit)}<table>{table}</table>"
            + (f"<br>predicted highest against other spots<table>{markers}</table>" if markers else "")
        )


def _score(r: float, ceiling: float) -> str:
    if np.isnan(r):
        return ""
    return f"{r:5.2f}" + ("" if np.isnan(ceiling) else f" of {ceiling:.2f}")


def _colours(name: str) -> list[list[int]]:
    rgba: np.ndarray = mpl.colormaps[name](np.linspace(0, 1, 256), bytes=True)
    return [list(map(int, colour[:3])) for colour in rgba]


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="jpeg", quality=88)
    return buffer.getvalue()
