"""The pictures of ``nh.explore`` in the browser: what Python and ``_explore.js`` tell each other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import anywidget
import matplotlib as mpl
import numpy as np
import traitlets
from PIL import Image

from nh2st_scverse.pl._explore import Map
from nh2st_scverse.pl._figure import FAINTNESS, Picture, section_title

HERE = Path(__file__).parent


class Canvas(anywidget.AnyWidget):
    """The pictures of one section: drawn, zoomed and clicked in the browser."""

    _esm = HERE / "_explore.js"
    _css = HERE / "_explore.css"

    leads = traitlets.Bool(True).tag(sync=True)  # has the heading, and minds the keys of the whole panel
    section = traitlets.Unicode().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    gene = traitlets.Unicode().tag(sync=True)  # or set of genes
    heading = traitlets.Unicode().tag(sync=True)
    trust = traitlets.Unicode().tag(sync=True)
    image = traitlets.Bytes().tag(sync=True)  # JPEG
    image_extent = traitlets.List(traitlets.Float()).tag(sync=True)  # µm: left, right, bottom, top
    window = traitlets.List(traitlets.Float()).tag(sync=True)  # µm: left, right, bottom, top of all there is to see
    xy = traitlets.Bytes().tag(sync=True)  # (n, 2) float32, µm
    radius = traitlets.Bytes().tag(sync=True)  # (n,) float32, µm
    spacing = traitlets.Float().tag(sync=True)  # µm between adjacent spots
    values = traitlets.Bytes().tag(sync=True)  # (maps, n) float32
    maps = traitlets.List(traitlets.Dict()).tag(sync=True)  # name, limits, colour map or labels, and unit of each
    colours = traitlets.Dict().tag(sync=True)  # 256 colours of each colour map
    contrast = traitlets.Float(FAINTNESS).tag(sync=True)  # of the H&E under spots
    opacity = traitlets.Float(1.0).tag(sync=True)  # of the spots
    picked = traitlets.Int(-1).tag(sync=True)  # position of the chosen spot in the section
    view = traitlets.List(traitlets.Float()).tag(sync=True)  # µm: left, top, right, bottom of what is seen
    tile = traitlets.Bytes().tag(sync=True)  # JPEG of what is seen, sharper than `image`
    tile_extent = traitlets.List(traitlets.Float()).tag(sync=True)
    drawing = traitlets.Bool(False).tag(sync=True)  # dragging draws a region instead of moving the picture
    outline = traitlets.List(traitlets.Float()).tag(sync=True)  # µm: x, y, x, y, ... of the region
    still = traitlets.Unicode().tag(sync=True)  # a piece of the picture that stands in the notebook until this is drawn

    def show_section(self, picture: Picture, spacing: float, window: Sequence[float], outline: Sequence[float]) -> None:
        """The H&E and the spots; `window` is what is shown of them."""
        if (self.section, self.window) != (picture.name, list(window)):
            self.view = []  # the browser shows all of it
        self.section, self.title = picture.name, f"H&E  {section_title(picture)}"
        self.image, self.image_extent = jpeg(picture.pixels), list(picture.extent)
        self.xy, self.radius = (a.astype(np.float32).tobytes() for a in (picture.xy, picture.radius))
        self.window, self.spacing, self.outline = list(window), float(spacing), list(outline)
        self.tile, self.picked = b"", -1

    def show_maps(self, maps: Sequence[Map]) -> None:
        """Values of the spots, and their colours."""
        self.colours = self.colours | {m.cmap: colours_of(m.cmap) for m in maps if m.cmap not in {"", *self.colours}}
        self.maps = [
            {
                "name": one.name,
                "limits": list(map(float, one.limits)),
                "beyond": [bool((one.values < one.limits[0]).any()), bool((one.values > one.limits[1]).any())],
                "cmap": one.cmap,
                "unit": one.unit,
                "labels": list(one.labels),
                "colours": list(one.colours),
            }
            for one in maps
        ]
        self.values = np.concatenate([one.values for one in maps]).tobytes()


def colours_of(cmap: str) -> list[list[int]]:
    """256 colours of a colour map: red, green, blue."""
    rgba: np.ndarray = mpl.colormaps[cmap](np.linspace(0, 1, 256), bytes=True)
    return [list(map(int, colour[:3])) for colour in rgba]


def jpeg(pixels: np.ndarray) -> bytes:
    """Pixels as a file; no pixels as nothing."""
    if not pixels.size:
        return b""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="jpeg", quality=88)
    return buffer.getvalue()
