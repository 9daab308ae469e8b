"""What is wrong with a section, as values: the tools raise or log them, ``pp.check`` shows them.

Nothing here raises, logs or changes anything, but for :func:`raise_or_log`. Each function also says what is right, so
that ``pp.check`` shows what will be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from geopandas import GeoDataFrame
from scipy import sparse

from nh2st_scverse._constants import ARRAYS_UM, N_NODES, VISIUM_PITCH_UM
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_allowances
from nh2st_scverse.data.expression import numbers
from nh2st_scverse.data.geometry import Geometry, is_hexagonal, is_square, kind_of_shapes
from nh2st_scverse.data.images import apply_affine
from nh2st_scverse.data.patches import best_level, overhang, thumbnail
from nh2st_scverse.data.pixels import tissue_of, why_not_stained
from nh2st_scverse.data.placement import CELLS, ENOUGH_SPOTS, MOST_SPOTS, components_of
from nh2st_scverse.data.placement import fit as fit_places
from nh2st_scverse.data.quality import image_quality

INPUT_PX = 224  # of an encoder's patch, for the pyramid level that is named
COARSEST_PATCH = 32  # px of the image that a patch must span: below, nuclei are no longer seen
COARSE_PATCH = 64  # px: below, nuclei are a few pixels wide
DOWNSCALED = 1.5  # µm per pixel above which an image named hires or lowres is taken for the copy that it is
# The details of 15 real sections are at most 4.5 µm, or 1.8 px where pixels are coarse; blurred by 4 µm or 2 px they
# are at least 6.8 µm and 2.6 px. The stain of their tissue is 0.038 to 0.088; at half of it, 0.017 to 0.029.
BLURRED_UM, BLURRED_PX = 6.0, 2.25
PALE = 0.03
LEGACY_PITCH_UM, LEGACY_ROWS = 200.0, 40  # the arrays have 33 x 35 spots
BINS_UM = (2.0, 8.0, 16.0)  # of Visium HD as Space Ranger writes them
OWN_BINS_UM = (2.5, 6.0, 10.0, 12.0, 12.5, 14.0, 15.0, 18.0, 20.0)  # about as wide, as people make them
LOW_R = 0.05  # mean held-out correlation that chance reaches
DARK = 40.0  # of 255; theirs is 98 to 165


@dataclass(frozen=True)
class Problem:
    """Something that was looked at: right (``"ok"``), doubtful or wrong."""

    check: str  # what was looked at
    found: str
    status: Literal["ok", "warning", "error"] = "ok"
    remedy: str = ""  # the call that mends it
    allow: str = ""  # the allowance with which an error is gone on with, and a warning not repeated

    def __str__(self) -> str:
        return f"{self.found}. {self.remedy}".rstrip(". ") + "."


class Refused(ValueError):
    """Problems that a tool does not go on with."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def ok_unless(wrong: bool, check: str, found: str, remedy: str, *, allow: str = "") -> Problem:
    """A warning with its remedy when something is wrong, else a line that says what was found."""
    return Problem(check, found, "warning", remedy, allow) if wrong else Problem(check, found)


def allowed(problems: Iterable[Problem], allow: str | Iterable[str]) -> list[Problem]:
    """The same problems; errors that `allow` names are warnings, and say so."""
    names = as_allowances(allow)
    return [
        replace(p, status="warning", remedy=f"gone on with, as allow={p.allow!r} says")
        if p.status == "error" and p.allow in names
        else p
        for p in problems
    ]


def raise_or_log(problems: Iterable[Problem], allow: str | Iterable[str] = (), *, section: str = "") -> None:
    """Raise the errors that `allow` does not name, and log what is left to warn of.

    Raises
    ------
    Refused
        A ValueError with all errors, one a line.
    """
    problems, names = list(problems), as_allowances(allow)
    errors = [p for p in problems if p.status == "error" and p.allow not in names]
    if errors:
        raise Refused(errors)
    where = f"{section}, " if section else ""
    for p in problems:
        if p.status == "error":
            logger.warning("%s%s: %s. Going on as told.", where, p.check, p.found)
        elif p.status == "warning" and p.allow not in names:
            logger.warning("%s%s: %s%s", where, p.check, p.found, f"; {p.remedy}" if p.remedy else "")


def in_section(
    geometry: Geometry,
    *,
    diameter_um: float,
    spacing_um: float,
    patch_um: float,
    counts: Any = None,
    name: str = "",
) -> list[Problem]:
    """All that is looked at in one section but :func:`image_kind` and :func:`placement`, which come before.

    Parameters
    ----------
    geometry
        Its spots on its image.
    diameter_um, spacing_um
        Of its spots.
    patch_um
        Side of a patch.
    counts
        (n, G) of its spots, if there are any.
    name
        Of its shapes, which may tell how wide bins are.
    """
    usable = on_image(geometry)
    found = [
        *image(geometry),
        *spots(geometry, diameter_um=diameter_um, spacing_um=spacing_um),
        *bins(geometry, name, diameter_um=diameter_um, spacing_um=spacing_um, counted=has_genes(counts)),
        *resolution(geometry, patch_um),
        *fit(geometry, counts, spacing_um=spacing_um),
    ]
    return found + quality(geometry, geometry.pixels()[usable]) if usable.any() else found


def image(geometry: Geometry) -> list[Problem]:
    """Which image, how large, at which resolution."""
    width, height = geometry.levels[0].size
    n, microns = len(geometry.levels), geometry.microns_per_pixel
    left_out = f"without {geometry.left_out}" if geometry.left_out else ""
    found = [
        Problem("image", f"{geometry.image_key!r}, {width} x {height} px, {n} level{'s' if n > 1 else ''}"),
        *([Problem("chosen", geometry.why)] if geometry.why else []),
        *([Problem("coordinate system", repr(geometry.system))] if geometry.system else []),
        *([Problem("left out", left_out, "warning", "is it the right image?")] if left_out else []),
        ok_unless(
            not 0.05 <= microns <= 10,
            "µm per pixel",
            f"{microns:.4g} ({geometry.microns_source})",
            "no slide has this: pass microns_per_pixel=",
        ),
    ]
    if geometry.doubt:
        remedy = "give the image its place with spatialdata_io.xenium_aligned_image(image, alignment_csv)"
        found.append(Problem("alignment", geometry.doubt, "warning", remedy))
    if any(word in geometry.image_key.lower() for word in ("hires", "lowres")) and microns > DOWNSCALED:
        found.append(
            Problem(
                "full resolution",
                f"{geometry.image_key!r} is Space Ranger's downscaled copy",
                "warning",
                "is there a full-resolution image? spatialdata_io.visium(path, fullres_image_file=...)",
                allow="coarse",
            )
        )
    return found


def spots(geometry: Geometry, *, diameter_um: float, spacing_um: float) -> list[Problem]:
    """How wide spots are, how far apart, and whether that is what the array has that they look like."""
    xy = geometry.pixels()
    hexagonal = is_hexagonal(xy)
    # circles that do not touch are those of an array, whatever µm per pixel says: grids of ours touch
    touch = abs(diameter_um / spacing_um - 1) < 0.02
    rim = np.ptp(xy, axis=0) * geometry.microns_per_pixel / spacing_um
    legacy = not touch and is_square(xy) and rim.max() < LEGACY_ROWS and spacing_um > 60
    visium = hexagonal and not touch and diameter_um > 0
    spot_um = ARRAYS_UM["Visium"][1]
    drawn = visium and 1.1 * spot_um < diameter_um * VISIUM_PITCH_UM / spacing_um  # as Space Ranger does
    found = [
        ok_unless(
            diameter_um > 1.1 * spacing_um,
            "spots",
            f"{len(geometry.coordinates)}, {diameter_um:.1f} µm wide"
            + (f" as they are drawn ({spot_um:.0f} µm on the slide)" if drawn else "")
            + f", {spacing_um:.1f} µm apart"
            + (", hexagonal" if hexagonal else ""),
            "they overlap: is their radius right, and microns_per_pixel?",
        )
    ]
    pitch, array = (VISIUM_PITCH_UM, "Visium grid") if visium else (LEGACY_PITCH_UM, "legacy array")
    if (visium or legacy) and abs(spacing_um / pitch - 1) > 0.05:
        found.append(
            Problem(
                "spot spacing",
                f"{spacing_um:.1f} µm in what looks like a {array} of {pitch:.0f} µm: µm per pixel is "
                f"{spacing_um / pitch:.2g} times what the pitch says",
                "warning",
                f"microns_per_pixel={geometry.microns_per_pixel * pitch / spacing_um:.4g} would fit",
            )
        )
    return found


def bins(geometry: Geometry, name: str, *, diameter_um: float, spacing_um: float, counted: bool) -> list[Problem]:
    """Whether squares that touch are as wide as their name says (``square_008um``), or as bins of Visium HD are.

    Squares without counts are grids of ours, as wide as anybody likes.
    """
    if abs(diameter_um / spacing_um - 1) > 0.02 or not counted:
        return []
    named = re.search(r"_0*(\d+)um(?![a-z])", name)
    usual = min(BINS_UM, key=lambda pitch: abs(np.log(spacing_um / pitch)))
    pitch = float(named[1]) if named else usual
    off = abs(spacing_um / pitch - 1)
    own = any(abs(spacing_um / side - 1) < 0.01 for side in OWN_BINS_UM) or off > 0.3
    if not pitch or off < 0.05 or (own and not named) or not is_square(geometry.pixels()):
        return []
    told = f"bins of {pitch:g} µm" + (" by their name" if named else ", as those of Visium HD")
    return [
        Problem(
            "spot spacing",
            f"{spacing_um:.2f} µm in what looks like {told}: µm per pixel is {spacing_um / pitch:.2g} times what the "
            "pitch says",
            "warning",
            f"microns_per_pixel={geometry.microns_per_pixel * pitch / spacing_um:.4g} would fit",
        )
    ]


def has_genes(counts: Any) -> bool:
    """Whether there are counts of any gene."""
    return counts is not None and counts.shape[1] > 0


def finite_numbers(counts: Any, rows: Any = slice(None)) -> sparse.csr_matrix | None:
    """Some rows of counts that may be lazy or of objects; None where they are no finite numbers, which others tell."""
    try:
        found = sparse.csr_matrix(numbers(counts[rows], "X"), dtype=np.float64)
    except (TypeError, ValueError, IndexError):
        return None
    return found if np.isfinite(found.data).all() else None


def outlines(shapes: GeoDataFrame, geometry: Geometry) -> list[Problem]:
    """Whether shapes look like an array, a grid or cells."""
    kind = kind_of_shapes(shapes, geometry.microns)
    if kind or len(shapes) < N_NODES:
        return []
    found = f"{len(shapes)} outlines that look like neither an array, a grid nor cells"
    return [Problem("shapes", found, "warning", "are these regions that somebody drew? Choose others with shapes_key=")]


def on_image(geometry: Geometry) -> np.ndarray:
    """Spots whose centre lies on the image: (n,) bool."""
    xy = geometry.pixels()
    return np.asarray(((xy >= 0) & (xy < np.array(geometry.levels[0].size))).all(axis=1))


def placement(geometry: Geometry, name: str) -> list[Problem]:
    """Whether spots lie on the image and on tissue, and not with x and y swapped."""
    xy, size = geometry.pixels(), geometry.levels[0].size
    inside = on_image(geometry)
    if inside.mean() < 0.5:
        swapped_inside = ((xy[:, ::-1] >= 0) & (xy[:, ::-1] < np.array(size))).all(axis=1).mean()
        found = (
            f"{(~inside).mean():.0%} of the spots of {name!r} are outside image {geometry.image_key!r} ({size[0]} x "
            f"{size[1]} px): x reaches from {xy[:, 0].min():.0f} to {xy[:, 0].max():.0f}, y from "
            f"{xy[:, 1].min():.0f} to {xy[:, 1].max():.0f}"
        )
        remedy = (
            "With x and y swapped they would be inside: swap the columns of the coordinates"
            if swapped_inside > 0.9
            else "The image may be a downscaled copy: give it its scale with "
            "spatialdata.transformations.set_transformation"
        )
        return [Problem("x and y", found, "error", remedy)]

    on, swapped = on_tissue(geometry)
    if on < 0.88 and swapped > on + 0.1:
        where = Problem(
            "x and y",
            f"x and y of the spots of {name!r} look swapped: {on:.0%} of them are on tissue, {swapped:.0%} would be "
            "with x and y exchanged",
            "error",
            "Swap the columns of the coordinates (obsm['spatial'] is x, y), or pass allow='off_tissue' if it is right",
            allow="off_tissue",
        )
    elif on < 0.5:
        where = Problem(
            "x and y",
            f"Only {on:.0%} of the spots of {name!r} are on tissue in {geometry.image_key!r}: spots and image do not "
            "fit (another section, a flip, or a wrong scale)",
            "error",
            "Look with sdata.pl.render_images().pl.render_shapes().pl.show(); pass allow='off_tissue' if this is right",
            allow="off_tissue",
        )
    else:
        where = ok_unless(
            on < 0.7 or (on < 0.8 and swapped > on),  # fat is as pale as glass
            "x and y",
            f"{on:.0%} of the spots are on tissue; swapped, {swapped:.0%} would be",
            "look with sdata.pl.render_images().pl.render_shapes().pl.show()",
            allow="off_tissue",
        )
    if inside.all():
        return [where]
    outside = f"{int((~inside).sum())} spots of {name!r} are outside the image: not predicted"
    return [where, Problem("spots outside", outside, "warning", "is the image cropped?")]


def on_tissue(geometry: Geometry) -> tuple[float, float]:
    """Fraction of spots on tissue, as they are and with x and y swapped."""
    picture, level = thumbnail(geometry)
    tissue = tissue_of(picture)
    step = level.size[0] / picture.shape[1]
    xy = apply_affine(level.from_shapes, geometry.coordinates) / step

    def fraction(points: np.ndarray) -> float:
        at = np.floor(points).astype(int)
        inside = ((at >= 0) & (at < tissue.shape[::-1])).all(axis=1)
        return float(tissue[at[inside, 1], at[inside, 0]].sum() / len(at))

    return fraction(xy), fraction(xy[:, ::-1])


def resolution(geometry: Geometry, patch_um: float) -> list[Problem]:
    """Whether the image is fine enough for a patch."""
    microns = geometry.microns_per_pixel
    pixels = patch_um / microns
    if pixels > max(geometry.levels[0].size):
        found = (
            f"A patch of {patch_um:g} µm is larger than the image, {pixels:.0f} px of {max(geometry.levels[0].size)}"
        )
        return [
            Problem("patch", found, "error", f"Pass a smaller patch_um=, or is microns_per_pixel={microns:.4g} wrong?")
        ]
    level = best_level(geometry, patch_um, INPUT_PX)
    position = geometry.levels.index(level)
    found = (
        f"{patch_um:g} µm, {pixels:.0f} px of the image; read from level {position} ({level.microns_per_pixel:.3g} µm "
        "per pixel)"
    )
    border = int(overhang(geometry, patch_um).sum())
    if border:
        found += f"; {border} reach over the border and are padded"
    if pixels >= COARSEST_PATCH:
        few = pixels < COARSE_PATCH
        remedy = "nuclei are a few pixels wide: is there an image of higher resolution?"
        return [ok_unless(few, "patch", found, remedy, allow="coarse")]
    found = (
        f"Image {geometry.image_key!r} is too coarse: {microns:.2f} µm per pixel ({geometry.microns_source}), so "
        f"that a patch of {patch_um:.0f} µm is only {pixels:.0f} px wide, where at least {COARSEST_PATCH} px are "
        f"expected ({patch_um / COARSEST_PATCH:.2f} µm per pixel)"
    )
    remedy = (
        "Is there a full-resolution image (for visium(): fullres_image_file=...)? Pass allow='coarse' to go on with "
        "this one, at a loss of accuracy"
    )
    return [Problem("patch", found, "error", remedy, allow="coarse")]


REMEDIES = {
    "x and y swapped": "Swap the columns of the coordinates (obsm['spatial'] is x, y)",
    "mirrored": "Mirror the coordinates back (width or height minus them), or take the image that was not mirrored",
    "turned": "Turn the coordinates back, or take the image that was not turned",
    "scaled": "Divide the coordinates by that, or give the image its scale with "
    "spatialdata.transformations.set_transformation",
    "shifted": "Is the image cropped, or that of another section? Give it its place with "
    "spatialdata.transformations.set_transformation",
}


def fit(geometry: Geometry, counts: Any, *, spacing_um: float) -> list[Problem]:
    """Whether expression fits the picture better where the spots are than with them mirrored, turned, scaled, shifted.

    Nothing is said of fewer than 100 spots, of spots too dense to be told apart in a small picture, or of values that
    are no counts and no logarithms.

    Parameters
    ----------
    geometry
        The spots on their image.
    counts
        (n, G) counts of the spots or logarithms, or None.
    spacing_um
        Of the spots.
    """
    if counts is None or counts.shape[0] < ENOUGH_SPOTS or not counts.shape[1]:
        return []
    picture, level = thumbnail(geometry)
    every = max(1, max(picture.shape) // 1024)
    picture = picture[::every, ::every]
    step = level.size[0] / picture.shape[1]
    xy = apply_affine(level.from_shapes, geometry.coordinates) / step
    spacing = spacing_um / level.microns_per_pixel / step
    chosen = np.unique(np.linspace(0, len(xy) - 1, MOST_SPOTS).astype(int))
    some = finite_numbers(counts, chosen) if spacing >= CELLS else None
    if some is None or (some.data < 0).any():
        return []
    whole = bool((some.data[:1000] % 1 == 0).all())
    found = fit_places(
        picture, tissue_of(picture), xy, components_of(some, logged=not whole), chosen=chosen, spacing=spacing
    )
    if not found.misplaced:
        return [Problem("fit", f"expression and image fit: {found.score:.2f}, {found.best:.2f} if {found.cause}")]
    remedy = next(text for cause, text in REMEDIES.items() if found.cause.startswith(cause))
    return [
        Problem(
            "fit",
            f"the spots look {found.cause}: without that expression fits the image better ({found.best:.2f} "
            f"instead of {found.score:.2f})",
            "warning",
            f"{remedy}. Look with sdata.pl.render_images().pl.render_shapes().pl.show()",
            allow="off_tissue",
        )
    ]


def image_kind(geometry: Geometry) -> list[Problem]:
    """Whether a picture looks like H&E in bright light."""
    why = why_not_stained(thumbnail(geometry)[0])
    if not why:
        return [Problem("H&E", "looks like it: purple and pink on a bright ground")]
    return [
        Problem(
            "H&E",
            f"Image {geometry.image_key!r} is not H&E: {why}",
            "error",
            "Pass image_key= with the H&E image, or allow='other_stain' to go on with this one",
            allow="other_stain",
        )
    ]


def low_scores(pearson: np.ndarray) -> list[Problem]:
    """What a mean held-out correlation near or below 0 means.

    Parameters
    ----------
    pearson
        (G,) of each gene, on spots that the model has not seen.
    """
    if not np.isfinite(pearson).any():
        found = "not known: no tissue is left to hold out"
        return [Problem("held-out r", found, "warning", "Give larger sections, or several groups")]
    mean = float(np.nanmean(pearson))
    if mean > LOW_R:
        return [Problem("held-out r", f"{mean:.3f} on average")]
    return [
        Problem(
            "held-out r",
            f"{mean:.3f} on average: the image tells next to nothing of the expression",
            "warning",
            "Likely: spots mirrored, turned, shifted or of another section (nh.pp.check), rows of the table in another "
            "order than the spots, hardly any counts, a training of few epochs, or a blurred or coarse image",
        )
    ]


def in_tissue(obs: pd.DataFrame) -> np.ndarray:
    """Rows that count: not those that Space Ranger calls off the tissue (``in_tissue`` is 0). (n,) bool."""
    if "in_tissue" not in obs:
        return np.ones(len(obs), dtype=bool)
    values = obs["in_tissue"].astype(str).str.strip().str.lower()
    return ~values.isin(("0", "0.0", "false", "no")).to_numpy()


def counting(obs: pd.DataFrame) -> np.ndarray:
    """Positions of the rows that tell whether spots and image fit: those in tissue, if there are any."""
    inside = np.flatnonzero(in_tissue(obs))
    return inside if len(inside) else np.arange(len(obs))


def background(obs: pd.DataFrame) -> list[Problem]:
    """Spots off the tissue, as a raw matrix has them."""
    off = int((~in_tissue(obs)).sum())
    if not off:
        return []
    found = f"{off} of {len(obs)} have in_tissue == 0: not trained on and not scored"
    return [Problem("off tissue", found, "warning", "take the filtered matrix, or table[table.obs['in_tissue'] == 1]")]


def quality(geometry: Geometry, places: np.ndarray) -> list[Problem]:
    """Focus and stain at some places (n, 2) on tissue, in pixels of the finest level."""
    found = image_quality(geometry, places)
    sharp = found.detail_um <= max(BLURRED_UM, BLURRED_PX * found.pixel_um)
    details = f"the finest details are of {found.detail_um:.1f} µm"
    dark, pale = found.brightness < DARK, found.stain < PALE
    how = "very dark" if dark else "pale" if pale else "as usual"
    return [
        ok_unless(
            not sharp,
            "focus",
            f"{'sharp' if sharp else 'blurred'}: {details}" if np.isfinite(found.detail_um) else "no details at all",
            "out of focus, or enlarged from a smaller image: is there a sharper one?",
        ),
        ok_unless(
            dark or pale,
            "stain",
            f"{how}: optical density {found.stain:.3f}, brightness of tissue {found.brightness:.0f} of 255",
            "is it H&E in bright light?" if dark else "pass stain='reinhard' to nh.tl.train",
        ),
    ]
