"""Pixels as 8-bit RGB on white, and whether they show H&E: one way for files, arrays and SpatialData."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.filters import gaussian, threshold_otsu

from nh2st_scverse._validators import examples

BLACK = 12.0  # of 255: not scanned
DARK = 60  # of 255: the ground of fluorescence; that of a stained slide is above 165
ENOUGH = 512  # px of a picture that tell its colours
STROKE = 0.01  # of the width of a picture: narrower than strokes of a pen, wider than nuclei of the same blue
# Nuclei are bluer than what is round them: over 15 real sections the difference of the optical densities of red and
# blue rises by 0.05 to 0.25 of their sum; with red and blue exchanged it falls by as much.
EXCHANGED = -0.03
MARKER = r"dapi|hoechst|fitc|tritc|gfp|rfp|yfp|texas ?red|\b(cy|af|alexa|opal|atto)[ -]?(fluor)?[ -]?\d+"
GENERIC = r"((channel|image|page|sample|band|ch|c)[\s:_#-]*)?[\d:/_ -]*"  # "Channel 1", "C:0", "2"
ORIGINAL = "Use the colour image that was taken in bright light."
FULL_SCALES = (1023, 4095, 16383, 65535)  # of cameras with 10 to 16 bits


@dataclass(frozen=True)
class Colours:
    """How the channels of an image become 8-bit RGB on white; decided once for an image, not for each part of it."""

    order: tuple[int, ...] = (0, 1, 2)  # positions of red, green and blue
    opacity: int | None = None  # position
    white: float = 255.0
    note: str = ""  # what is left out

    def to_rgb(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """(y, x, c) to (y, x, 3); NaN is glass."""
        if pixels.dtype == np.uint8 and self.opacity is None:
            return pixels if pixels.shape[-1] == 3 and self.order == (0, 1, 2) else pixels[..., list(self.order)]
        used = [*self.order] if self.opacity is None else [*self.order, self.opacity]
        return on_white(np.nan_to_num(pixels[..., used].astype(np.float32) / self.white, nan=1.0))


PLAIN = Colours()
"""Red, green and blue of 8 bits."""


def colours_of(dtype: np.dtype[Any], names: Sequence[str], n: int, sample: Any, *, what: str) -> Colours:
    """How the channels of an image become RGB.

    Parameters
    ----------
    dtype
        Of the pixels.
    names
        Of the channels, or nothing.
    n
        Number of channels.
    sample
        A function without arguments that gives some of the pixels (y, x, c); called where names do not tell.
    what
        The image, for messages.

    Raises
    ------
    ValueError
        They are no colours of a bright-field stain, or have other values than 0 to 255 or 0 to 1.
    """
    order = order_of(names, what=what)
    if order is None and n not in (3, 4):
        raise ValueError(f"Expected an RGB image (3 channels), found {n} in {what}: is it H&E?")
    order, white, pixels = order or (0, 1, 2), 255.0, None
    if dtype != np.uint8:
        pixels = sample()
        white = white_of(pixels[..., list(order)], dtype, what=what)
    others = [i for i in range(n) if i not in order]
    named = [i for i in others if i < len(names) and re.fullmatch(r"a|alpha|opacity", names[i], flags=re.IGNORECASE)]
    if named or not others:
        return Colours(order, named[0] if named else None, white)
    if len(others) == 1 and (len(names) <= others[0] or re.fullmatch(GENERIC, names[others[0]], re.IGNORECASE)):
        pixels = sample() if pixels is None else pixels
        opacity = pixels[..., others[0]] / white
        if opacity.max() > 0.02 and ((opacity < 0.02) | (opacity > 0.98)).mean() > 0.9:
            return Colours(order, others[0], white)
        kind = "0 everywhere" if opacity.max() <= 0.02 else "neither opaque nor clear in most places"
        return Colours(order, None, white, f"a fourth channel that is no opacity ({kind})")
    return Colours(order, None, white, f"{len(others)} channel(s) beside red, green and blue")


def order_of(names: Sequence[str], *, what: str) -> tuple[int, ...] | None:
    """Positions of red, green and blue by the names of the channels; None if they are not named so.

    Raises
    ------
    ValueError
        The names are those of stains or of other colours.
    """
    if [name.strip()[:1].lower() for name in names[:4]] == list("cmyk"):
        raise ValueError(f"{what} is CMYK, its channels are {examples(names)}: convert it to RGB.")
    names = ["" if re.fullmatch(GENERIC, name.strip(), flags=re.IGNORECASE) else name.strip() for name in names]
    short = [name[0].lower() if re.fullmatch(r"r(ed)?|g(reen)?|b(lue)?", name.lower()) else name for name in names]
    marked = any(re.search(MARKER, name, flags=re.IGNORECASE) for name in short)
    if not marked and all(short.count(one) == 1 for one in "rgb"):
        return tuple(short.index(one) for one in "rgb")
    if marked or len(set(short) - {"", *"rgb"}) > 1:
        raise ValueError(f"{what} is not H&E: its channels are {examples(names)}. {ORIGINAL}")
    return None


def white_of(pixels: NDArray[Any], dtype: np.dtype[Any], *, what: str) -> float:
    """What white is in pixels that are not uint8.

    Raises
    ------
    ValueError
        It is neither 255 nor 1.
    """
    values = pixels[np.isfinite(pixels)]
    low, high = (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)
    floats = np.issubdtype(dtype, np.floating)
    if floats and low >= -0.1 and high <= 1.5:  # resampling overshoots a little
        return 1.0
    if dtype != np.bool_ and high <= 256 and -0.1 * high <= low and not (floats and low < 0 and high <= 1.5):
        return 255.0
    full = next((one for one in (1, *FULL_SCALES) if high <= one), high)
    scaled = "(x + 1) * 127.5" if -1.05 <= low < 0 and high <= 1.05 else f"x * (255 / {full:g})"
    raise ValueError(
        f"{what} has values of {dtype} from {low:g} to {high:g}: expected 8 bits (0 to 255), or floats from 0 to 1. "
        f'Convert it: `({scaled}).round().astype("uint8")`, where x are its values.'
    )


def on_white(pixels: NDArray[Any], *, premultiplied: bool = False) -> NDArray[np.uint8]:
    """(y, x, 3 or 4), uint8 or float in [0, 1], to (y, x, 3) uint8; opacity on white."""
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
        return pixels
    values = pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        values /= 255
    if values.shape[-1] == 4:
        opacity = values[..., 3:]
        values = values[..., :3] * (1 if premultiplied else opacity) + (1 - opacity)
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def extremes(picture: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The brightest and the darkest of the three colours of each pixel of a picture (h, w, 3): (h, w) each."""
    red, green, blue = (picture[..., i] for i in range(3))  # four times as fast as along the last axis
    return np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)


def not_scanned(picture: NDArray[Any]) -> NDArray[np.bool_]:
    """Black areas and strokes of a pen on a small picture (h, w, 3): (h, w) bool."""
    red, green, blue = (picture[..., i].astype(np.float32) for i in range(3))
    # haematoxylin and eosin both let less green through than red and blue; pens of other colours do not
    pen = (green > red + 30) | ((blue > 1.8 * red) & (blue > 60))
    black = np.maximum(np.maximum(red, green), blue) <= BLACK
    marked = np.zeros(black.shape, dtype=bool)
    side = max(5, round(STROKE * max(black.shape)))
    for one in (pen, black):
        if one.any():  # what is as wide as a stroke, and a little round it
            marked |= maximum_filter(minimum_filter(one, side), side + 4)
    return marked


P = ParamSpec("P")
T = TypeVar("T")


def remembered(find: Callable[P, T]) -> Callable[P, T]:
    """Find once for arrays of the same content: check, training and prediction look at the same sections in turn."""
    found: dict[bytes, T] = {}

    @wraps(find)
    def again(*arguments: P.args, **named: P.kwargs) -> T:
        digest = hashlib.sha256(repr([*named]).encode())
        for one in (*arguments, *named.values()):
            if isinstance(one, np.ndarray):
                digest.update(np.ascontiguousarray(one).data)
                one = (one.shape, one.dtype)
            digest.update(repr(one).encode())
        key = digest.digest()
        if key not in found:
            while len(found) >= 64:
                found.pop(next(iter(found)), None)
            found[key] = find(*arguments, **named)
        return found[key]

    return again


def tissue_of(picture: np.ndarray) -> np.ndarray:
    """What is more colourful than glass on a picture (h, w, 3), by Otsu's threshold on its saturation: (h, w) bool.

    Black (not scanned) and ink are left out; where nothing is as pale as glass, all is tissue.
    """
    return _tissue_of(picture).copy()


@remembered
def _tissue_of(picture: np.ndarray) -> np.ndarray:
    picture = picture.astype(np.float32)
    brightest, least = extremes(picture)
    saturation = gaussian((brightest - least) / np.maximum(brightest, 1), 3)
    seen = (brightest > BLACK) & ~not_scanned(picture)
    if not seen.any() or np.ptp(saturation[seen]) < 1e-3:
        return np.zeros(saturation.shape, dtype=bool)
    tissue = saturation > threshold_otsu(saturation[seen])
    glass = seen & ~tissue
    # glass is a third as colourful as tissue, or less; the paler half of tissue is more than half as colourful
    if glass.any() and saturation[glass].mean() > 0.5 * saturation[seen & tissue].mean():
        return np.asarray(seen)
    return np.asarray(seen & tissue)


@remembered
def why_not_stained(picture: NDArray[np.uint8]) -> str:
    """Why a small picture (h, w, 3) of a whole image is no H&E in bright light; nothing when it looks like it."""
    every = -(-max(picture.shape) // ENOUGH)
    picture = picture[::every, ::every]
    values = picture.astype(np.float32)
    brightest, least = extremes(values)
    scanned = brightest > BLACK
    if not scanned.any():
        return "all is black, as where files are gone that it is read from"
    if float((brightest - least)[scanned].max()) < 10:
        return "the picture is grey"
    bright = float(np.percentile(brightest[scanned], 95))
    white = float(np.percentile(least[scanned], 95))  # signals of fluorescence are not white, whatever is black
    if bright < 120 or np.median(brightest[scanned]) < 80 or white < DARK:
        return "the picture is on a dark ground, as fluorescence or an inverted picture"
    stained = scanned & (brightest - least > 30)
    left = stained & ~not_scanned(picture)
    stained = left if left.sum() > 0.5 * stained.sum() else stained  # strokes of a pen, but not a green picture
    if stained.mean() <= 0.01:
        return ""
    # both stains take green from white light: where red or blue is lowest, channels are exchanged or it is no H&E
    red, green, blue = values[stained].T
    if np.mean(green <= np.minimum(red, blue) + 5) < 0.4:
        return "tissue is not purple or pink (are its channels red, green, blue?)"
    density = -np.log((values[stained] + 1) / 256)  # (n, 3)
    total, difference = density.sum(axis=1), density[:, 0] - density[:, 2]
    together = np.mean((total - total.mean()) * (difference - difference.mean()))
    spread = total.std() * difference.std()
    darkest = difference[total >= np.quantile(total, 0.9)].mean()
    if spread > 0 and together < min(EXCHANGED * total.var(), -0.3 * spread) and darkest < -0.02:
        return "nuclei are redder than the rest (are its channels blue, green, red?)"
    return ""
