"""Which image spots lie on, told by what images show and where they are, then by their names; never by width alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation
from xarray import DataArray, DataTree

from nh2st_scverse._logging import info_once
from nh2st_scverse.data import technologies
from nh2st_scverse.data.pixels import Colours, colours_of, why_not_stained

XY = ("x", "y")
SMALL = 256  # px: images are told apart on pictures of about this size
ALIKE = 0.9  # correlation of two pictures of one thing
TOLERANCE = 25  # of 255, between the colours of two levels, or copies, at one place
FEWEST_PX = 8  # on a side of what is compared at a place: where pixels begin differs between levels
PLACES = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))  # y and x, as parts of a picture
# words that say what an element is, not of which section
KINDS = (
    "image|images|img|picture|slide|he|hne|h|e|full|fullres|hires|lowres|high|low|res|resolution|original|spots?|"
    "shapes?|circles?|cells?|nuclei|bins?|squares?|polygons?|points?|visium|hd|grid|tissue|um|downscaled"
)

_seen: dict[str, Any] = {}  # what was found in lazy pixels, by the name of their graph


def apply_affine(affine: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map points: (3, 3) applied to (n, 2) gives (n, 2)."""
    return xy @ affine[:2, :2].T + affine[:2, 2]


def affine_of(element: Any, system: str) -> np.ndarray:
    """From the coordinates of an element to a system: (3, 3)."""
    transformation = get_transformation(element, to_coordinate_system=system)
    return np.asarray(transformation.to_affine_matrix(XY, XY), dtype=float)


def systems_of(element: Any) -> set[str]:
    """The coordinate systems that an element is in."""
    return set(get_transformation(element, get_all=True))


def image_levels(image: DataArray | DataTree) -> list[DataArray]:
    """The resolutions of a single or multiscale image, finest first."""
    if isinstance(image, DataTree):
        arrays = [next(iter(image[scale].data_vars.values())) for scale in image.children]
        return sorted(arrays, key=lambda a: -a.sizes["x"])
    return [image]


def colours(sdata: SpatialData, image_key: str) -> Colours:
    """How the channels of an image become RGB.

    Raises
    ------
    ValueError
        They are no colours of a stain, or their values have another range.
    """
    arrays = image_levels(sdata.images[image_key])
    array = arrays[-1]
    names = [str(name) for name in array.coords["c"].values] if "c" in array.coords else []

    def sample() -> NDArray[Any]:
        return _kept([array], "sample", lambda: _strided(array))

    try:
        return colours_of(array.dtype, names, array.sizes["c"], sample, what=f"image {image_key!r}")
    except ValueError as error:
        text = str(error)
        raise ValueError(
            f"{text[:1].upper()}{text[1:]} Available images: {list(sdata.images)}; pass image_key=."
        ) from None


def _kept(arrays: Sequence[DataArray], what: str, find: Any) -> Any:
    """What is found in pixels; of lazy ones it is kept, because locating looks at the same images again and again."""
    if not all(isinstance(array.data, da.Array) for array in arrays):
        return find()
    name = ":".join([what, *(array.data.name for array in arrays)])
    if name not in _seen:
        while len(_seen) >= 256:
            del _seen[next(iter(_seen))]
        _seen[name] = find()
    return _seen[name]


def _strided(array: DataArray) -> NDArray[Any]:
    step = max(1, max(array.sizes["x"], array.sizes["y"]) // SMALL)
    return np.asarray(array[..., ::step, ::step].transpose("y", "x", "c").values)


def small_picture(sdata: SpatialData, image_key: str) -> NDArray[np.uint8]:
    """A picture (h, w, 3) of a whole image, of a few hundred px."""
    arrays = image_levels(sdata.images[image_key])
    enough = [array for array in arrays if max(array.sizes["x"], array.sizes["y"]) >= SMALL]
    array = enough[-1] if enough else arrays[0]
    how = colours(sdata, image_key)
    return _kept([array], f"picture {how}", lambda: how.to_rgb(_strided(array)))


@dataclass(frozen=True)
class Seen:
    """A level of an image, of which parts can be read."""

    height: int
    width: int
    read: Callable[[list[tuple[slice, slice]]], list[NDArray[np.uint8]]]  # each y and x to (h, w, 3)

    def places(self, share: float = 1 / 64) -> list[NDArray[np.uint8]]:
        """Five parts of it, each of this share of its sides."""

        def part(size: int, at: float) -> slice:
            start = round((at - share / 2) * size)
            return slice(start, max(start + 1, round((at + share / 2) * size)))

        return self.read([(part(self.height, y), part(self.width, x)) for y, x in PLACES])

    def has_shape_of(self, finest: Seen) -> bool:
        """Whether it is as wide for its height as the finest level."""
        apart = abs(finest.height * self.width - self.height * finest.width)
        return apart <= 2 * max(finest.height, finest.width) + 0.01 * finest.height * self.width

    def shows(self, finest: Seen) -> bool:
        """Whether it has the colours of the finest level at the same places."""
        share = min(0.25, max(1 / 64, FEWEST_PX / min(self.height, self.width)))
        pairs = zip(finest.places(share), self.places(share), strict=True)
        differences = sorted(np.abs(a.mean((0, 1)) - b.mean((0, 1))).max() for a, b in pairs)
        return bool(differences[-2] < TOLERANCE)  # one of them may lie where only one level was scanned


def consistent_levels(arrays: Sequence[DataArray], how: Colours) -> list[int]:
    """Positions of the levels that show what the finest one shows: one shape, one colour at the same places."""

    def seen(array: DataArray) -> Seen:
        def read(parts: list[tuple[slice, slice]]) -> list[NDArray[np.uint8]]:
            # at once: a small level is often made from all of the largest whenever it is read
            found = dask.compute(*(array.isel(y=y, x=x).transpose("y", "x", "c").data for y, x in parts))
            return [how.to_rgb(part) for part in found]

        return Seen(array.sizes["y"], array.sizes["x"], read)

    finest = seen(arrays[0])
    keep = [0]
    for i, array in enumerate(arrays[1:], start=1):
        level, both = seen(array), (arrays[0], array)
        if level.has_shape_of(finest) and _kept(both, f"shows {how}", lambda level=level: level.shows(finest)):
            keep.append(i)
    return keep


def why_no_stain(sdata: SpatialData, image_key: str) -> str:
    """Why an image is no H&E; nothing when it looks like it."""
    named = _by_technology(sdata, image_key)
    if named:
        return named
    try:
        return why_not_stained(small_picture(sdata, image_key))
    except ValueError as error:
        return str(error).split(". ")[0]


def _same_picture(sdata: SpatialData, a: str, b: str) -> bool:
    """Whether two images show the same, at whatever resolution, on one place if they share a coordinate system."""
    first, second = (image_levels(sdata.images[key])[0] for key in (a, b))
    sizes = [np.array([array.sizes["x"], array.sizes["y"]], dtype=float) for array in (first, second)]
    if (sizes[0] == sizes[1]).all():  # another rendering of it, such as one with normalised stains
        return False
    if abs(sizes[0][0] * sizes[1][1] / (sizes[0][1] * sizes[1][0]) - 1) > 0.02:
        return False
    common = systems_of(first) & systems_of(second)
    if common:
        system = min(common)
        here, there = (
            apply_affine(affine_of(array, system), np.array([[0, 0], size]))
            for array, size in zip((first, second), sizes, strict=True)
        )
        if not np.allclose(here, there, atol=0.02 * np.abs(here).max()):
            return False
    try:
        pictures = [small_picture(sdata, key) for key in (a, b)]
    except ValueError:
        return False
    left, right = (
        np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX), dtype=float) for picture in pictures
    )
    if np.abs(left - right).mean() > TOLERANCE:
        return False
    spread = left.std() * right.std()
    return bool(spread == 0 or ((left - left.mean()) * (right - right.mean())).mean() > ALIKE * spread)


def pictures_of(sdata: SpatialData, image_keys: Iterable[str]) -> list[list[str]]:
    """Images, those that are one picture at several resolutions together, finest first."""
    pictures: list[list[str]] = []
    for key in sorted(image_keys, key=lambda k: -image_levels(sdata.images[k])[0].sizes["x"]):
        mine = next((picture for picture in pictures if _same_picture(sdata, picture[0], key)), None)
        if mine is None:
            pictures.append([key])
        else:
            mine.append(key)
    return pictures


def _stained(sdata: SpatialData, pictures: list[list[str]]) -> tuple[list[list[str]], str]:
    """The pictures that look like H&E, all if none does, and why the others are left out."""
    reasons = {picture[0]: why_no_stain(sdata, picture[0]) for picture in pictures}
    left = [picture for picture in pictures if not reasons[picture[0]]]
    if not left or len(left) == len(pictures):
        return pictures, ""
    return left, "; ".join(f"{key!r} is not H&E ({why})" for key, why in reasons.items() if why)


def choose_slide(sdata: SpatialData, image_key: str | None) -> tuple[str, str]:
    """The image of an object without spots, and why it was chosen among several.

    Raises
    ------
    KeyError
        No image, or several different ones.
    """
    keys = list(sdata.images)
    if image_key is not None:
        if image_key not in keys:
            raise KeyError(f"image_key={image_key!r} is not there. Available images: {keys}.")
        return image_key, ""
    if not keys:
        raise KeyError("Expected one of the images, found none.")
    if len(keys) == 1:
        return keys[0], ""
    pictures, why = _stained(sdata, pictures_of(sdata, keys))
    if len(pictures) > 1:
        raise KeyError(
            f"Found several images and cannot choose: pass image_key= one of {[picture[0] for picture in pictures]}."
        )
    return _chosen(pictures[0], [why])


def choose_image(sdata: SpatialData, shapes_key: str, image_key: str | None) -> tuple[str, str]:
    """The image under spots, and why it was chosen among several.

    Raises
    ------
    KeyError
        No image, several different ones, or one that another section lies on too, though there is one for each.
    ValueError
        The image that was named is in no coordinate system of the spots.
    """
    systems, under = systems_of(sdata.shapes[shapes_key]), _under(sdata, shapes_key)
    no_stain = {key: why for key in sdata.images if (why := _by_technology(sdata, key))}
    if image_key in no_stain:
        raise ValueError(
            f"Image {image_key!r} is not the H&E to predict from: {no_stain[image_key]}. Images that may be: "
            f"{under}. Add the H&E image at full resolution."
        )
    if image_key is not None:
        if image_key not in sdata.images:
            raise KeyError(f"image_key={image_key!r} is not there. Available images: {list(sdata.images)}.")
        if image_key not in under:
            raise ValueError(
                f"Image {image_key!r} and spots {shapes_key!r} share no coordinate system (spots are in "
                f"{sorted(systems)}). Register them with spatialdata.transformations.set_transformation."
            )
        return image_key, ""
    if not under:
        others = [f"{key} ({no_stain[key]})" if key in no_stain else key for key in sdata.images]
        raise KeyError(
            f"Expected an image that shares a coordinate system with {shapes_key!r} ({sorted(systems)}), found none. "
            f"Available images: {others}. Add the H&E image, or register it with "
            "spatialdata.transformations.set_transformation."
        )
    picture, reasons = _picture_under(sdata, shapes_key)
    sections = _sections_with(sdata, shapes_key)
    rivals = [one for one in sections if one != shapes_key and set(_under(sdata, one)) & set(picture)]
    if rivals:
        everything, _ = _stained(sdata, pictures_of(sdata, sdata.images))
        shared = [one for one in rivals if set(_candidates(sdata, one)) & set(picture)]
        if shared and len(everything) >= len(sections):
            raise KeyError(
                f"{shapes_key!r} and {shared[0]!r} would lie on one image, {picture[0]!r}, though there are as many "
                f"images as sections: {[one[0] for one in everything]}. Pass "
                f"image_key={{{shapes_key!r}: ..., {shared[0]!r}: ...}}, or register each image with its spots alone."
            )
    return _chosen(picture, reasons)


def _chosen(picture: list[str], reasons: list[str]) -> tuple[str, str]:
    if len(picture) > 1:
        reasons = [*reasons, f"{picture} are one picture at several resolutions; using the finest, {picture[0]!r}"]
    why = "; ".join(reason for reason in reasons if reason)
    if why:
        info_once(f"{why}.")  # a session asks for the same image many times
    return picture[0], why


def _under(sdata: SpatialData, shapes_key: str) -> list[str]:
    return [key for key in _sharing(sdata, shapes_key) if not _by_technology(sdata, key)]


def _sharing(sdata: SpatialData, shapes_key: str) -> list[str]:
    systems = systems_of(sdata.shapes[shapes_key])
    return [key for key in sdata.images if systems_of(image_levels(sdata.images[key])[0]) & systems]


def _by_technology(sdata: SpatialData, image_key: str) -> str:
    """Why the reader of a technology names no H&E so, or its channels are stains of another kind."""
    return technologies.why_no_stain(image_key, image_levels(sdata.images[image_key])[0])


def _sections_with(sdata: SpatialData, shapes_key: str) -> list[str]:
    """The shapes that one table annotates, those in question among them."""
    for table in sdata.tables.values():
        attributes = table.uns.get("spatialdata_attrs")
        if isinstance(attributes, dict) and attributes.get("region") is not None:
            regions = [one.shapes_key for one in technologies.regions_of(sdata, table)[0]]
            if shapes_key in regions:
                return regions
    return [shapes_key]


def _candidates(sdata: SpatialData, shapes_key: str) -> list[str]:
    try:
        return _picture_under(sdata, shapes_key)[0]
    except KeyError:
        return []


def _picture_under(sdata: SpatialData, shapes_key: str) -> tuple[list[str], list[str]]:
    """The one picture under spots, and why it is that one."""
    keys = _under(sdata, shapes_key)
    others = {key: _by_technology(sdata, key) for key in _sharing(sdata, shapes_key) if key not in keys}
    why = "; ".join(f"{key!r} is not H&E ({reason})" for key, reason in others.items())
    pictures = [keys]
    if len(keys) > 1:
        pictures, more = _stained(sdata, pictures_of(sdata, keys))
        why = "; ".join(filter(None, [why, more]))
    reasons = [why + f": {pictures[0][0]!r} is used" * (bool(why) and len(pictures) == 1)]
    if len(pictures) > 1:
        on = [_share_on(sdata, shapes_key, picture[0]) for picture in pictures]
        if max(on) > 0.9 and sorted(on)[-2] < 0.5:
            pictures = [pictures[int(np.argmax(on))]]
            reasons.append(f"the spots of {shapes_key!r} lie on {pictures[0][0]!r} alone")
    sections = _sections_with(sdata, shapes_key)
    if len(pictures) > 1 and len(sections) > 1:
        mine = _by_name(shapes_key, pictures)
        theirs = [_by_name(one, pictures) for one in sections if one != shapes_key]
        if mine is not None and mine not in theirs:
            pictures = [mine]
            reasons.append(f"{mine[0]!r} is the image of {shapes_key!r} by its name")
    if len(pictures) > 1:
        raise KeyError(
            f"Found several images under {shapes_key!r} and cannot choose: pass image_key= one of "
            f"{[picture[0] for picture in pictures]}."
        )
    return pictures[0], reasons


def _share_on(sdata: SpatialData, shapes_key: str, image_key: str) -> float:
    """Share of the spots whose centre lies on an image."""
    shapes, array = sdata.shapes[shapes_key], image_levels(sdata.images[image_key])[0]
    system = min(systems_of(shapes) & systems_of(array))
    to_pixels = np.linalg.inv(affine_of(array, system)) @ affine_of(shapes, system)
    centres = shapes.geometry.centroid.get_coordinates().to_numpy(dtype=float)
    xy = apply_affine(to_pixels, centres)
    return float(((xy >= 0) & (xy < [array.sizes["x"], array.sizes["y"]])).all(axis=1).mean())


def _by_name(shapes_key: str, pictures: list[list[str]]) -> list[str] | None:
    """The picture whose name is nearest to that of spots; None where two are, or none is."""
    mine = _words(shapes_key)
    scores = []
    for picture in pictures:
        theirs = [_words(key) for key in picture]
        scores.append(max(len(mine & words) / max(1, len(mine | words)) for words in theirs))
    best = max(scores)
    return pictures[scores.index(best)] if best > 0 and scores.count(best) == 1 else None


def _words(name: str) -> set[str]:
    """What tells a name from others: ``{"a1"}`` of ``A1_hires_image``."""
    parts = re.split(r"[^a-z0-9]+", name.lower())
    parts = [re.sub(rf"^(?:{KINDS})(?=\d)", "", part) for part in parts]
    return {part for part in parts if part and not re.fullmatch(rf"(?:{KINDS})|\d+um", part)}
