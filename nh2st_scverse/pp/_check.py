"""``pp.check``: what the tools find in an object, and what is wrong with it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._logging import quiet
from nh2st_scverse._options import Elements
from nh2st_scverse._validators import as_allowances, check_positive, check_unique, choose_key
from nh2st_scverse.data import checks, copies
from nh2st_scverse.data.checks import Problem
from nh2st_scverse.data.cohort import check_image_keys, counts_of, default_patch
from nh2st_scverse.data.copies import Piece
from nh2st_scverse.data.expression import is_logged, matrix
from nh2st_scverse.data.geometry import locate, locate_image, spot_diameter, spot_spacing
from nh2st_scverse.data.quality import places_on
from nh2st_scverse.data.section import choose_places, locate_sections
from nh2st_scverse.data.technologies import regions_of
from nh2st_scverse.data.tissue import detect_tissue

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

    def show(self, problems: Iterable[Problem]) -> None:
        self.extend(
            dict(zip(COLUMNS, (self.section, p.check, p.found, p.status, p.remedy), strict=True)) for p in problems
        )

    def add(
        self, check: str, found: str, *, status: Literal["ok", "warning", "error"] = "ok", remedy: str = ""
    ) -> None:
        self.show([Problem(check, found, status, remedy)])

    @contextmanager
    def errors(self, check: str) -> Iterator[None]:
        """Whatever is raised inside is a line."""
        try:
            yield
        except Exception as error:
            text = str(error.args[0]) if error.args else ""
            if not isinstance(error, KeyError | ValueError | TypeError):  # not ours: of which kind helps to find it
                text = f"{type(error).__name__}: {text}"
            found, *rest = re.split(r"(?<!e\.g)\. ", text or repr(error), maxsplit=1)
            self.add(check, found, status="error", remedy="".join(rest))


@documented()
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
        Side of a patch in µm, for a slide ``model.patch_um``; None takes 0.75 of the spot spacing, at least 56.
    $elements
    layer
        Layer with the counts; None means X.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    allow
        Known problems to go on with: ``"coarse"``, ``"off_tissue"``, ``"other_stain"``.

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
            "image, microns_per_pixel=...), nh.io.slide(path) or spatialdata_io.visium(path), or read a store with "
            "spatialdata.read_zarr(path). Several objects are checked one by one."
        )
    if patch_um is not None:
        check_positive(patch_um, argument="patch_um")
    allowed = as_allowances(allow)
    lines = _Lines()
    with lines.errors("image"):
        check_image_keys(image_key, [sdata])
    regions: list[str] = []
    with lines.errors("table"):
        annotating = [key for key, table in sdata.tables.items() if table.uns.get("spatialdata_attrs")]
        if table_key is not None or annotating:
            table_key = choose_key(annotating, table_key, what="tables that annotate spots", argument="table_key")
            regions = _regions(sdata, table_key, shapes_key, lines)
            unique = _table(sdata, table_key, layer, lines)
            table_key = table_key if unique else None
        elif sdata.shapes:
            lines.add("table", "none: a model's prediction makes one, training needs counts")
            regions = choose_places(sdata, Elements(None, shapes_key, image_key, microns_per_pixel))
            others = [name for name in sdata.shapes if name not in regions]
            if others and shapes_key is None:
                lines.add("left out", f"shapes {others}, which look like neither an array, a grid nor cells")
        else:
            lines.add("table", "none: nh.tl.predict_expression(slide, model=model) makes a grid and a table")
            with lines.errors("image"):
                _slide(
                    sdata,
                    image_key if isinstance(image_key, str) else None,
                    microns_per_pixel,
                    allowed,
                    patch_um,
                    lines,
                )

    pieces: list[Piece] = []
    for region in regions:
        lines.section = region
        image = image_key.get(region) if isinstance(image_key, Mapping) else image_key
        elements = Elements(table_key, region, image, microns_per_pixel, allowed)
        with lines.errors("image"):
            pieces += _section(sdata, elements, layer, patch_um, lines)
    lines.section = ""
    spacings = {piece.name: piece.spacing_um for piece in pieces}
    patches = [default_patch(spacing) for spacing in spacings.values()]
    if patch_um is None and patches and max(patches) > 1.25 * min(patches):
        found = ", ".join(f"{name}: {spacing:.0f} µm" for name, spacing in spacings.items())
        lines.add("spot spacings", found, status="error", remedy="pass patch_um=, or mend microns_per_pixel in one")
    with lines.errors("sections"):
        lines.show(copies.apart(pieces))
    return Findings(list(lines), columns=COLUMNS)


def _regions(sdata: SpatialData, table_key: str, shapes_key: str | None, lines: _Lines) -> list[str]:
    regions, absent = regions_of(sdata, sdata.tables[table_key])
    found = [region.shapes_key for region in regions]
    if shapes_key is not None:
        return [choose_key(found, shapes_key, what="shapes that the table annotates", argument="shapes_key")]
    if not found:
        raise KeyError(f"Table {table_key!r} annotates {absent}, which is not among the shapes {list(sdata.shapes)}")
    if absent:
        lines.add("regions", f"{absent} are no shapes: their rows are left out", status="warning")
    return found


def _table(sdata: SpatialData, table_key: str, layer: str | None, lines: _Lines) -> bool:
    """Names and counts of a table. Returns whether its rows and genes can be told from each other."""
    table = sdata.tables[table_key]
    lines.add("table", f"{table_key!r}: {table.n_obs} spots x {table.n_vars} genes")
    before = len(lines)
    for names, what in ((table.obs_names, "obs_names"), (table.var_names, "var_names")):
        with lines.errors(what):
            check_unique(names, what=what, remedy=f"sdata.tables[{table_key!r}].{what}_make_unique()")
    unique = len(lines) == before
    if unique:
        lines.add("names", "of spots and genes are unique")
    with lines.errors("expression"):
        logged = is_logged(matrix(table, layer))
        where = "X" if layer is None else f"layer {layer!r}"
        predicted = KEY in table.uns and KEY not in table.layers
        found = f"{'logarithms, used as they are' if logged else 'counts'} in {where}" + ", predicted" * predicted
        remedy = "X holds a prediction: do not train on it or compare with it"
        lines.show([checks.ok_unless(predicted, "expression", found, remedy)])
    return unique


def _slide(
    sdata: SpatialData,
    image_key: str | None,
    microns_per_pixel: float | None,
    allowed: frozenset[str],
    patch_um: float | None,
    lines: _Lines,
) -> None:
    geometry = locate_image(sdata, image_key=image_key, microns_per_pixel=microns_per_pixel)
    lines.section = geometry.image_key
    kind = checks.allowed(checks.image_kind(geometry), allowed)
    lines.show([*checks.image(geometry), *kind])
    if any(problem.status == "error" for problem in kind):
        return
    if patch_um is not None:
        lines.show(checks.resolution(geometry, patch_um))
    with lines.errors("tissue"):
        tissue = detect_tissue(geometry, min_piece_um=200.0)
        share = float(np.mean(tissue.mask)) if tissue.mask is not None else 0.0
        area = share * np.prod(geometry.levels[0].size) * geometry.microns_per_pixel**2 / 1e6
        found, remedy = f"{share:.0%} of the image, {area:.3g} mm²", "mark it and call nh.pp.grid(tissue_key=)"
        lines.show([checks.ok_unless(not share, "tissue", found, remedy)])
        if share:
            lines.show(checks.quality(geometry, places_on(tissue)))


def _section(
    sdata: SpatialData, elements: Elements, layer: str | None, patch_um: float | None, lines: _Lines
) -> list[Piece]:
    """The lines of one section, that of ``elements.shapes``. Returns it, or nothing where its spots have no spacing."""
    region = choose_key(sdata.shapes, elements.shapes, what="shapes", argument="shapes_key")
    geometry = locate(sdata, region, image_key=elements.image_of(region), microns_per_pixel=elements.microns_per_pixel)
    counts = None
    if elements.table is not None:
        with lines.errors("spots"), suppress(checks.Refused), quiet():  # where spots lie is shown below
            (section,) = locate_sections(sdata, elements)
            table = sdata.tables[elements.table]
            obs = table.obs.iloc[section.rows]
            counting = checks.counting(obs)
            geometry = section.geometry.take(counting)
            lines.show(checks.background(obs))
            counts = counts_of(table, section.rows[counting], layer)
    spacing = spot_spacing(geometry.pixels() * geometry.microns_per_pixel) if len(geometry.coordinates) > 1 else np.nan
    if not spacing > 0:
        lines.show(checks.image(geometry))
        return []
    patch = round(default_patch(spacing), 1) if patch_um is None else patch_um
    kind = checks.allowed(checks.image_kind(geometry), elements.allow)
    if any(problem.status == "error" for problem in kind):  # nothing else can be told from it
        lines.show([*checks.image(geometry), *kind])
        return []
    lines.show([*kind, *checks.outlines(sdata.shapes[region], geometry)])
    found = checks.in_section(
        geometry,
        diameter_um=spot_diameter(sdata.shapes[region], geometry),
        spacing_um=spacing,
        patch_um=patch,
        counts=counts,
        name=region,
    )
    lines.show(checks.allowed([*found, *checks.placement(geometry, region)], elements.allow))
    return [Piece(region, region, geometry, spacing, counts)]
