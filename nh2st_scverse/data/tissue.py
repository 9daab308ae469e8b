"""Where tissue is on a slide, and a grid of places over it."""

from __future__ import annotations

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import shapely
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from nh2st_scverse._logging import quiet
from nh2st_scverse._validators import choose_key
from nh2st_scverse.data.geometry import Geometry
from nh2st_scverse.data.images import affine_of, apply_affine, image_levels, systems_of
from nh2st_scverse.data.patches import thumbnail
from nh2st_scverse.data.pixels import not_scanned

THUMBNAIL = 2048  # px: tissue is looked for in a picture of about this size
HOLES = 0.001  # of the picture: smaller holes are tissue (fat, vessels)
CONTRAST = 8.0  # of 255, between glass and tissue
DISC = np.array(  # 19 points, evenly over a disc of radius 1
    [(0.0, 0.0)]
    + [(r * np.cos(a), r * np.sin(a)) for r, n in ((0.45, 6), (0.85, 12)) for a in 2 * np.pi * np.arange(n) / n]
)


@dataclass(frozen=True)
class Tissue:
    """Tissue as a mask, or as outlines."""

    mask: np.ndarray | None  # (h, w) bool
    to_mask: np.ndarray  # (3, 3) affine: px of the image (x, y, 1) -> px of the mask, or coordinates of the outlines
    outlines: shapely.Geometry | None = None

    def share(self, xy: np.ndarray, radius: float) -> np.ndarray:
        """Share (n,) of the discs around `xy` (n, 2; px of the image) that is tissue."""
        points = (xy[:, None] + radius * DISC).reshape(-1, 2)
        at = apply_affine(self.to_mask, points)
        if self.outlines is not None:
            found = shapely.contains_xy(self.outlines, at[:, 0], at[:, 1])
        else:
            assert self.mask is not None
            x, y = np.floor(at).astype(int).T
            inside = (x >= 0) & (y >= 0) & (x < self.mask.shape[1]) & (y < self.mask.shape[0])
            found = np.zeros(len(at), dtype=bool)
            found[inside] = self.mask[y[inside], x[inside]]
        return found.reshape(len(xy), -1).mean(axis=1)

    def bounds(self) -> np.ndarray:
        """Corners (2, 2), lowest and highest x and y, in px of the image; NaN without tissue."""
        if self.outlines is not None:
            x0, y0, x1, y1 = self.outlines.bounds
        else:
            assert self.mask is not None
            y, x = np.nonzero(self.mask)
            if not len(x):
                return np.full((2, 2), np.nan)
            x0, y0, x1, y1 = x.min(), y.min(), x.max() + 1, y.max() + 1
        corners = np.array([(x0, y0), (x1, y0), (x0, y1), (x1, y1)], dtype=float)
        moved = apply_affine(np.linalg.inv(self.to_mask), corners)
        return np.stack([moved.min(axis=0), moved.max(axis=0)])


def detect_tissue(geometry: Geometry, min_piece_um: float) -> Tissue:
    """Tissue by ``squidpy.experimental.im.detect_tissue`` in a thumbnail of the image.

    squidpy enlarges its mask to the size of the image it gets: it gets the thumbnail alone, so that memory does not
    depend on the slide. What was not scanned (black) and ink are no tissue. Pieces smaller than a square of side
    `min_piece_um` (dust, fiducials) are left out.
    """
    picture, level = thumbnail(geometry, THUMBNAIL)
    every = -(-max(picture.shape) // THUMBNAIL)
    picture = picture[::every, ::every].copy()
    scanned = ~not_scanned(picture)
    if not scanned.all():  # black areas and ink become glass
        picture[~scanned] = np.percentile(picture[scanned], 95, axis=0) if scanned.any() else 255
    step = level.size[0] / picture.shape[1]
    side_um = step * level.microns_per_pixel
    small = SpatialData(images={"thumbnail": Image2DModel.parse(picture.transpose(2, 0, 1), dims=("c", "y", "x"))})
    with quiet():
        from squidpy.experimental.im import detect_tissue as by_squidpy

        found = by_squidpy(
            small,
            "thumbnail",
            channel_format="rgb",
            corners_are_background=False,  # glass is what is bright, also where tissue fills a corner
            min_specimen_area_frac=min(0.5, (min_piece_um / side_um) ** 2 / picture[..., 0].size),
            n_samples=picture[..., 0].size,  # every piece
            close_holes_smaller_than_frac=HOLES,
            inplace=False,
        )
    mask = np.asarray(found) > 0
    grey = picture.mean(axis=2)
    if mask.all() or (mask.any() and grey[~mask].mean() - grey[mask].mean() < CONTRAST):
        mask = np.zeros_like(mask)  # Otsu's threshold also halves what is glass alone
    return Tissue(mask, np.diag([1 / step, 1 / step, 1.0]) @ level.from_shapes)


def given_tissue(sdata: SpatialData, key: str, image_key: str) -> Tissue:
    """Tissue that the user has marked: labels (0 is glass), or polygons."""
    choose_key([*sdata.labels, *sdata.shapes], key, what="labels and shapes", argument="tissue_key")
    element = sdata[key]
    image = image_levels(sdata.images[image_key])[0]
    target = element if isinstance(element, gpd.GeoDataFrame) else image_levels(element)[0]
    shared = sorted(systems_of(image) & systems_of(target))
    if not shared:
        raise ValueError(
            f"Tissue {key!r} and image {image_key!r} share no coordinate system. Register them with "
            "spatialdata.transformations.set_transformation."
        )
    to_mask = np.linalg.inv(affine_of(target, shared[0])) @ affine_of(image, shared[0])
    if isinstance(target, gpd.GeoDataFrame):
        kinds = set(target.geometry.geom_type)
        if not kinds <= {"Polygon", "MultiPolygon"}:
            raise ValueError(f"Expected polygons in tissue_key={key!r}, found {sorted(kinds)}.")
        outlines = shapely.union_all(target.geometry.to_numpy())
        shapely.prepare(outlines)
        return Tissue(None, to_mask, outlines)
    return Tissue(np.asarray(target.values) > 0, to_mask)


def lay_grid(tissue: Tissue, spacing: float, shape: str, coverage: float) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 2) on tissue in px of the image, and their row and column (n, 2) in the array.

    `spacing` is in px. Rows and columns of a hexagonal grid are numbered as on a Visium slide: columns by twos, odd
    rows shifted by one.
    """
    low, high = tissue.bounds()
    height = spacing * (np.sqrt(3) / 2 if shape == "hexagonal" else 1.0)
    n_cols, n_rows = (np.ceil((high - low) / (spacing, height)).astype(int) + 1).tolist()
    start = (low + high - np.array([(n_cols - 1) * spacing, (n_rows - 1) * height])) / 2
    xy, rows, cols = [], [], []
    for row in range(n_rows):  # row by row: a dense grid has many places off the tissue
        shift = 0.5 * (row % 2) if shape == "hexagonal" else 0.0
        col = np.arange(n_cols)
        places = np.c_[start[0] + (col + shift) * spacing, np.full(n_cols, start[1] + row * height)]
        keep = tissue.share(places, spacing / 2) >= coverage
        xy.append(places[keep])
        rows.append(np.full(int(keep.sum()), row))
        cols.append(2 * col[keep] + row % 2 if shape == "hexagonal" else col[keep])
    return np.concatenate(xy), np.c_[np.concatenate(rows), np.concatenate(cols)]
