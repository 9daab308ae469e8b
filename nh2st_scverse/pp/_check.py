"""``pp.check``: what the tools find in an object, and what is wrong with it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY, VISIUM_PITCH_UM
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_allowances, check_positive, check_unique, choose_key
from nh2st_scverse.data.expression import is_logged, matrix
from nh2st_scverse.data.geometry import Geometry, is_hexagonal, locate, locate_image, spot_spacing
from nh2st_scverse.data.patches import best_level, overhang
from nh2st_scverse.data.quality import image_quality, places_on
from nh2st_scverse.data.section import (
    COARSEST_PATCH,
    PATCH_PER_SPACING,
    Section,
    check_image_keys,
    check_placement,
    find_sections,
    on_tissue,
)
from nh2st_scverse.data.tissue import detect_tissue

INPUT = 224  # px of an encoder's patch, for the pyramid level that is named
FEW_PIXELS = 64  # px of the image in a patch: below, nuclei are a few pixels wide
DOWNSCALED = 1.5  # µm per pixel above which an image named hires or lowres is taken for the copy that it is
# The details of 15 real sections are at most 4.5 µm, or 1.8 px where pixels are coarse; blurred by 4 µm or 2 px they
# are at least 6.8 µm and 2.6 px. The stain of their tissue is 0.038 to 0.088; at half of it, 0.017 to 0.029.
BLURRED_UM, BLURRED_PX = 6.0, 2.25
PALE = 0.03
DARK = 40.0  # of 255; theirs is 98 to 165
COLOURS = {"ok": "", "warning": "background:#fff3cd;color:#664d03", "error": "background:#f8d7da;color:#842029"}


class Findings(pd.DataFrame):
    """A data frame whose texts are shown in full, also those of a part of it."""

    @property
    def _constructor(self) -> type[Findings]:
        return Findings

    def _repr_html_(self) -> str:
        def cell(value: Any) -> str:
            return f'<td style="text-align:left">{html.escape(str(value))}</td>'

        head = "".join(f'<th style="text-align:left">{html.escape(str(name))}</th>' for name in self.columns)
        rows = [
            f'<tr style="{COLOURS.get(row.get("status", ""), "")}">{"".join(map(cell, row))}</tr>'
            for _, row in self.iterrows()
        ]
        return f'<table class="dataframe"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'

    def __repr__(self) -> str:
        if list(self.columns) != COLUMNS:
            return super().__repr__()
        wide = max((len(check) for check in self["check"]), default=0)
        lines = []
        for section, part in self.groupby("section", sort=False):
            lines.append(section or "object")
            for _, row in part.iterrows():
                remedy = f"\n    {'':{wide + 11}}-> {row['remedy']}" if row["remedy"] else ""
                lines.append(f"    {row['status']:<9} {row['check']:<{wide}} {row['found']}{remedy}")
        return "\n".join(lines)


COLUMNS = ["section", "check", "found", "status", "remedy"]


class _Lines(list[dict[str, str]]):
    """Lines of the table, of one section at a time."""

    section = ""

    def add(self, check: str, found: str, *, status: str = "ok", remedy: str = "") -> None:
        self.append(dict(zip(COLUMNS, (self.section, check, found, status, remedy), strict=True)))

    def warn_if(self, wrong: bool, check: str, found: str, remedy: str) -> None:
        self.add(check, found, status="warning" if wrong else "ok", remedy=remedy if wrong else "")

    def error(self, check: str, error: Exception) -> None:
        found, *rest = re.split(r"(?<!e\.g)\. ", str(error.args[0]), maxsplit=1)
        self.add(check, found, status="error", remedy="".join(rest))


def check(
    sdata: SpatialData,
    *,
    patch_um: float | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    layer: str | None = None,
    microns_per_pixel: float | None = None,
    allow: str | Iterable[str] = (),
) -> Findings:
    """Show which image, resolution, spots and counts the tools will use, and what is wrong with them.

    What would stop :func:`nh2st_scverse.tl.train` or :func:`nh2st_scverse.tl.predict_expression` is a line here, not an
    exception; what is a warning here, every tool logs. Objects with an image and no spots are checked as slides. Focus
    and stain are measured by ``squidpy.experimental.im.qc_image`` on a few tiles of tissue, which takes less than a
    second, also of a slide.

    Parameters
    ----------
    sdata
        Image, spots, and a table that annotates them.
    patch_um
        Side of a patch in µm, for a slide ``model.patch_um``; None takes 0.75 of the spot spacing.
    table_key, shapes_key, image_key
        Elements of the object; None means the only candidate.
    layer
        Layer with the counts; None means X.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    allow
        Known problems to go on with: ``"coarse"``, ``"off_tissue"``.

    Returns
    -------
    A data frame with a line for each finding: ``section`` (empty for the whole object), ``check``, ``found``,
    ``status`` (``"ok"``, ``"warning"`` or ``"error"``) and ``remedy``, the call that mends it. Nothing is changed.

    Raises
    ------
    TypeError
        Not a SpatialData object.
    ValueError
        A `patch_um` or `allow` that cannot be.

    See Also
    --------
    nh2st_scverse.pp.grid, nh2st_scverse.tl.predict_expression

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> found = nh.pp.check(nh.datasets.synthetic(width_um=1200))
    >>> found.loc[found["check"] == "µm per pixel", "found"].item()
    "1 (coordinate system 'section_0_microns')"
    """
    if not isinstance(sdata, SpatialData):
        raise TypeError(
            f"Expected a SpatialData object, found {type(sdata).__name__}. Make one with nh.io.from_anndata(adata, "
            "image, microns_per_pixel=...), nh.io.slide(path) or spatialdata_io.visium(path)."
        )
    if patch_um is not None:
        check_positive(patch_um, argument="patch_um")
    allowed = as_allowances(allow)
    lines = _Lines()
    try:
        check_image_keys(image_key, [sdata])
    except KeyError as error:
        lines.error("image", error)
    regions: list[str] = []
    annotating = [key for key, table in sdata.tables.items() if table.uns.get("spatialdata_attrs")]
    if table_key is not None or annotating:
        try:
            table_key = choose_key(annotating, table_key, what="tables that annotate spots", argument="table_key")
            regions = _regions(sdata, table_key, shapes_key, lines)
            _table(sdata, table_key, layer, lines)
        except KeyError as error:
            lines.error("table", error)
            table_key = None
    elif sdata.shapes:
        lines.add("table", "none: a model's prediction makes one, training needs counts")
        regions = [shapes_key] if shapes_key is not None else list(sdata.shapes)
    else:
        lines.add("table", "none: nh.tl.predict_expression(slide, model=model) makes a grid and a table")
        _slide(sdata, image_key if isinstance(image_key, str) else None, microns_per_pixel, patch_um, lines)

    spacings: dict[str, float] = {}
    for region in regions:
        lines.section = region
        image = image_key.get(region) if isinstance(image_key, Mapping) else image_key
        _section(sdata, region, table_key, image, microns_per_pixel, allowed, patch_um, spacings, lines)
    lines.section = ""
    if patch_um is None and spacings and max(spacings.values()) > 1.25 * min(spacings.values()):
        found = ", ".join(f"{name}: {spacing:.0f} µm" for name, spacing in spacings.items())
        lines.add("spot spacings", found, status="error", remedy="pass patch_um=, or mend microns_per_pixel in one")
    return Findings(list(lines), columns=COLUMNS)


def _regions(sdata: SpatialData, table_key: str, shapes_key: str | None, lines: _Lines) -> list[str]:
    region = sdata.tables[table_key].uns["spatialdata_attrs"]["region"]
    names = [region] if isinstance(region, str) else list(region)
    found = [name for name in names if name in sdata.shapes]
    if shapes_key is not None:
        return [choose_key(found, shapes_key, what="shapes that the table annotates", argument="shapes_key")]
    if not found:
        raise KeyError(f"Table {table_key!r} annotates {names}, which is not among the shapes {list(sdata.shapes)}")
    absent = [name for name in names if name not in found]
    if absent:
        lines.add("regions", f"{absent} are no shapes: their rows are left out", status="warning")
    return found


def _table(sdata: SpatialData, table_key: str, layer: str | None, lines: _Lines) -> None:
    table = sdata.tables[table_key]
    lines.add("table", f"{table_key!r}: {table.n_obs} spots x {table.n_vars} genes")
    doubled = False
    for names, what in ((table.obs_names, "obs_names"), (table.var_names, "var_names")):
        try:
            check_unique(names, what=what, remedy=f"sdata.tables[{table_key!r}].{what}_make_unique()")
        except ValueError as error:
            lines.error(what, error)
            doubled = True
    if not doubled:
        lines.add("names", "of spots and genes are unique")
    try:
        logged = is_logged(matrix(table, layer))
    except (KeyError, ValueError) as error:
        lines.error("expression", error)
        return
    where = "X" if layer is None else f"layer {layer!r}"
    predicted = KEY in table.uns and KEY not in table.layers
    lines.warn_if(
        predicted,
        "expression",
        f"{'logarithms, used as they are' if logged else 'counts'} in {where}" + (", predicted" if predicted else ""),
        "X holds a prediction: do not train on it or compare with it",
    )


def _slide(
    sdata: SpatialData, image_key: str | None, microns_per_pixel: float | None, patch_um: float | None, lines: _Lines
) -> None:
    try:
        geometry = locate_image(sdata, image_key=image_key, microns_per_pixel=microns_per_pixel)
    except (KeyError, ValueError) as error:
        lines.error("image", error)
        return
    lines.section = geometry.image_key
    _image(geometry, lines)
    if patch_um is not None:
        _patch(geometry, patch_um, frozenset(), lines)
    tissue = detect_tissue(geometry, min_piece_um=200.0)
    share = float(np.mean(tissue.mask)) if tissue.mask is not None else 0.0
    area = share * np.prod(geometry.levels[0].size) * geometry.microns_per_pixel**2 / 1e6
    lines.warn_if(
        not share, "tissue", f"{share:.0%} of the image, {area:.3g} mm²", "mark it and call nh.pp.grid(tissue_key=)"
    )
    if share:
        _quality(geometry, places_on(tissue), lines)


def _section(
    sdata: SpatialData,
    region: str,
    table_key: str | None,
    image_key: str | None,
    microns_per_pixel: float | None,
    allowed: frozenset[str],
    patch_um: float | None,
    spacings: dict[str, float],
    lines: _Lines,
) -> None:
    try:
        choose_key(sdata.shapes, region, what="shapes", argument="shapes_key")
        geometry = locate(sdata, region, image_key=image_key, microns_per_pixel=microns_per_pixel)
    except (KeyError, ValueError) as error:
        lines.error("image", error)
        return
    if table_key is not None:
        try:
            _, (section,) = find_sections(
                sdata,
                table_key=table_key,
                shapes_key=region,
                image_key=image_key,
                microns_per_pixel=microns_per_pixel,
                allow=("coarse", "off_tissue"),
            )
            geometry = section.geometry
        except (KeyError, ValueError) as error:
            known = any(line["status"] == "error" and str(error.args[0]).startswith(line["found"]) for line in lines)
            if not known and "outside image" not in str(error):
                lines.error("spots", error)
    _image(geometry, lines)
    xy_um = geometry.pixels() * geometry.microns_per_pixel
    spacing = spot_spacing(xy_um) if len(xy_um) > 1 else np.nan
    if not spacing > 0:
        return
    spacings[region] = spacing
    _spots(sdata, region, geometry, spacing, lines)
    usable = _placement(geometry, region, allowed, lines)
    _patch(geometry, round(PATCH_PER_SPACING * spacing, 1) if patch_um is None else patch_um, allowed, lines)
    if usable.any():
        _quality(geometry, geometry.pixels()[usable], lines)


def warn(section: Section, sdata: SpatialData, patch_um: float, allowed: frozenset[str]) -> None:
    """Log what :func:`check` would warn of in a section that a tool is about to use.

    What is an error there, the tool has raised before; where spots lie, it has warned of.
    """
    lines = _Lines()
    _image(section.geometry, lines)
    _spots(sdata, section.name.split(":")[-1], section.geometry, section.spacing_um, lines)
    _patch(section.geometry, patch_um, allowed, lines)
    _quality(section.geometry, section.geometry.pixels()[section.usable], lines)
    known = ("full resolution", "patch") if "coarse" in allowed else ()
    for line in lines:
        if line["status"] == "warning" and line["check"] not in known:
            logger.warning("%s, %s: %s; %s", section.name, line["check"], line["found"], line["remedy"])


def _image(geometry: Geometry, lines: _Lines) -> None:
    width, height = geometry.levels[0].size
    n = len(geometry.levels)
    lines.add("image", f"{geometry.image_key!r}, {width} x {height} px, {n} level{'s' if n > 1 else ''}")
    microns = geometry.microns_per_pixel
    lines.warn_if(
        not 0.05 <= microns <= 10,
        "µm per pixel",
        f"{microns:.4g} ({geometry.microns_source})",
        "no slide has this: pass microns_per_pixel=",
    )
    copy = any(word in geometry.image_key.lower() for word in ("hires", "lowres")) and microns > DOWNSCALED
    if copy:
        lines.add(
            "full resolution",
            f"{geometry.image_key!r} is Space Ranger's downscaled copy",
            status="warning",
            remedy="is there a full-resolution image? spatialdata_io.visium(path, fullres_image_file=...)",
        )


def _spots(sdata: SpatialData, region: str, geometry: Geometry, spacing: float, lines: _Lines) -> None:
    shapes = sdata.shapes[region]
    bounds = shapes.geometry.bounds  # of polygons; squares that touch do not overlap
    wide = shapes["radius"].mean() * 2 if "radius" in shapes else (bounds["maxx"] - bounds["minx"]).mean()
    scale = np.sqrt(abs(np.linalg.det(geometry.levels[0].from_shapes[:2, :2]))) * geometry.microns_per_pixel
    diameter = float(wide * scale)
    hexagonal = is_hexagonal(geometry.pixels())
    lines.warn_if(
        diameter > 1.1 * spacing,
        "spots",
        f"{len(geometry.coordinates)}, {diameter:.1f} µm wide, {spacing:.1f} µm apart"
        + (", hexagonal" if hexagonal else ""),
        "they overlap: is their radius right, and microns_per_pixel?",
    )
    # such circles on a hexagonal grid are Visium's, whatever µm per pixel says
    visium = hexagonal and 0.5 < diameter / spacing < 0.75
    if visium and abs(spacing / VISIUM_PITCH_UM - 1) > 0.1:
        lines.add(
            "spot spacing",
            f"{spacing:.1f} µm in what looks like a Visium grid of {VISIUM_PITCH_UM:.0f} µm",
            status="warning",
            remedy=f"microns_per_pixel={geometry.microns_per_pixel * VISIUM_PITCH_UM / spacing:.4g} would fit",
        )


def _placement(geometry: Geometry, region: str, allowed: frozenset[str], lines: _Lines) -> np.ndarray:
    """Which spots are on the image; none where they do not fit."""
    on, swapped = on_tissue(geometry)
    found = f"{on:.0%} of the spots are on tissue; swapped, {swapped:.0%} would be"
    try:
        usable = check_placement(geometry, region, allowed)
    except ValueError as error:
        lines.error("x and y", error)
        return np.zeros(len(geometry.coordinates), dtype=bool)
    lines.warn_if(
        on < 0.8,
        "x and y",
        found,
        "look with sdata.pl.render_images().pl.render_shapes().pl.show()",
    )
    outside = int((~usable).sum())
    if outside:
        lines.add(
            "spots outside",
            f"{outside} of {len(usable)} are outside the image and not predicted",
            status="warning",
            remedy="is the image cropped?",
        )
    return usable


def _patch(geometry: Geometry, size: float, allowed: frozenset[str], lines: _Lines) -> None:
    pixels = size / geometry.microns_per_pixel
    level = best_level(geometry, size, INPUT)
    position = next(i for i, one in enumerate(geometry.levels) if one is level)
    read = f"read from level {position} ({level.microns_per_pixel:.3g} µm per pixel)"
    found = f"{size:g} µm, {pixels:.0f} px of the image; {read}"
    border = int(overhang(geometry, size).sum())
    if border:
        found += f"; {border} reach over the border and are padded"
    if pixels < COARSEST_PATCH:
        lines.add(
            "patch",
            f"{found}. Too coarse: at least {COARSEST_PATCH} px are expected",
            status="warning" if "coarse" in allowed else "error",
            remedy="take the full-resolution image (for visium(): fullres_image_file=...), or pass allow='coarse'",
        )
    else:
        lines.warn_if(
            pixels < FEW_PIXELS, "patch", found, "nuclei are a few pixels wide: is there an image of higher resolution?"
        )


def _quality(geometry: Geometry, places: np.ndarray, lines: _Lines) -> None:
    found = image_quality(geometry, places)
    sharp = found.detail_um <= max(BLURRED_UM, BLURRED_PX * found.pixel_um)
    details = f"the finest details are of {found.detail_um:.1f} µm"
    lines.warn_if(
        not sharp,
        "focus",
        f"{'sharp' if sharp else 'blurred'}: {details}" if np.isfinite(found.detail_um) else "no details at all",
        "out of focus, or enlarged from a smaller image: is there a sharper one?",
    )
    dark, pale = found.brightness < DARK, found.stain < PALE
    how = "very dark" if dark else "pale" if pale else "as usual"
    lines.warn_if(
        dark or pale,
        "stain",
        f"{how}: optical density {found.stain:.3f}, brightness of tissue {found.brightness:.0f} of 255",
        "is it H&E in bright light?" if dark else "pass stain='reinhard' to nh.tl.train",
    )
