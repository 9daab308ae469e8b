"""Speed and memory of the image side on a synthetic whole slide, written to zarr in a temporary folder.

``python tests/benchmarks/slide.py`` (a 40,000 x 40,000 px slide: several GB of disk and some ten minutes), or smaller
with ``--size 16000``. Its parts can run one by one, on slides that are written once: ``--folder somewhere --parts ratio
memory``. Each line says whether its target holds:

- ``ratio``: patches per second of the whole path over those of the encoder alone on the same batches (at least 0.85),
- ``memory``: peak resident memory of ``tl.predict_expression`` at half the size and at the size (under 3 GB, the same),
- ``spots``: seconds against the number of spots (a straight line, of processor time),
- ``maps``: seconds to encode drawn tissue by the default encoder with ``maps="all"`` at 100, 25 and 10 µm, and places
  per second over those of patches (100 times the places take at most 1.3 times as long, 25 µm at least 15 times as many
  places); ``--tissue 1.4`` mm wide or more: of little tissue the margin of the tiles is a large part of the work. On
  endless tissue the tiles of a place at 25 µm have the pixels of 0.20 patches, and it has three: 14.9 is the most,
- ``costs``: seconds, processor time and peak memory of predictions by the default encoder, by number of places,
- ``dense``: peak memory of a prediction of 250 genes at 500,000 places, with as many features as the default encoder
  has (under 3 GB).
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import spatialdata
from spatialdata import SpatialData
from spatialdata.transformations import Identity, Scale

import nh2st_scverse as nh
from nh2st_scverse._options import Elements
from nh2st_scverse.data.cohort import collect_places
from nh2st_scverse.data.features import Sight, encode_section
from nh2st_scverse.data.patches import batches, cut
from nh2st_scverse.data.section import Section
from nh2st_scverse.io._image import CHUNK, pyramid
from nh2st_scverse.io._section import image_element
from nh2st_scverse.nn import Config

MICRONS = 0.5  # per pixel
TISSUE = 0.30  # of the slide
FIELDS = Config().fields
PATCH = 75.0
SMALL = 56  # px of the patches for the straight line: 100,000 spots in minutes


class Fast:
    """Colours at 4 x 4 places: takes no time, so that reading and cutting are what is measured."""

    name, dim, weights_hash = "fast", 48, "none"

    def __init__(self, input_size: int = 224) -> None:
        self.input_size = input_size

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        step = self.input_size // 4
        return patches[:, step // 2 :: step, step // 2 :: step].reshape(len(patches), -1) / np.float32(255)


class Wide(Fast):
    """As many features as the default encoder gives, still in no time."""

    name, dim = "wide", 771

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        return np.tile(super().__call__(patches), (1, 17))[:, : self.dim]


def write_slide(path: Path, size: int) -> None:
    """A disc of tissue, drawn once and repeated, on glass."""
    tile = nh.datasets.synthetic(width_um=1024, microns_per_pixel=MICRONS).images["section_0_image"]["scale0"]["image"]
    tile = tile.values[:, 512:1536, 512:1536]
    radius = size * np.sqrt(TISSUE / np.pi)

    def block(block_info: Any = None) -> np.ndarray:
        _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
        yy, xx = np.ogrid[y0:y1, x0:x1]
        on = (xx - size / 2) ** 2 + (yy - size / 2) ** 2 < radius**2
        return np.where(on, tile[:, : y1 - y0, : x1 - x0], np.uint8(243))

    chunks = ((3,), *da.core.normalize_chunks((CHUNK, CHUNK), (size, size)))
    pixels = da.map_blocks(block, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    systems = {"slide": Identity(), "slide_microns": Scale([MICRONS] * 2, axes=("x", "y"))}
    SpatialData(images={"slide_image": image_element(pyramid([pixels]), systems)}).write(path)


def fresh(path: Path) -> SpatialData:
    logging.getLogger("nh2st_scverse").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return spatialdata.read_zarr(path)


def with_spots(path: Path, spacing_um: float) -> Section:
    sdata = fresh(path)
    nh.pp.grid(sdata, spacing_um=spacing_um)
    ((key, shapes),) = sdata.shapes.items()
    elements = Elements(allow=frozenset({"off_tissue"}))
    return collect_places(sdata, key, shapes, elements, patch_um=PATCH).sections[0]


def ratio(path: Path, encoder: Any, n: int) -> dict[str, float]:
    """Patches per second of the whole path and of the encoder alone, on `n` spots next to each other."""
    section = with_spots(path, 100.0)
    every = np.flatnonzero(section.usable)
    near = np.concatenate(batches(section.geometry, every, size_um=PATCH, size_px=encoder.input_size))
    middle = max(0, len(near) // 2 - n // 2)
    section = section.take(near[middle : middle + n])
    encoder(np.zeros((8, encoder.input_size, encoder.input_size, 3), np.uint8))
    seconds = dict.fromkeys(("cutting", "encoder", "path"), 0.0)

    def timed(what: str, call: Any) -> Any:
        started = time.perf_counter()
        result = call()
        seconds[what] += time.perf_counter() - started
        return result

    total = 0
    for part in np.array_split(np.arange(section.n_spots), 3):  # in turns: other work on the machine meets all alike
        one = section.take(part)
        some = batches(one.geometry, np.arange(one.n_spots), size_um=PATCH, size_px=encoder.input_size)
        work = [(spots, PATCH * field) for spots in some for field in FIELDS]
        patches = timed("cutting", lambda: list(cut(one.geometry, work, size_px=encoder.input_size)))  # noqa: B023
        timed("encoder", lambda: [encoder(batch) for batch in patches])  # noqa: B023
        timed("path", lambda: encode_section(one, encoder, sight=Sight(PATCH, FIELDS), progress=False))  # noqa: B023
        total += sum(map(len, patches))
    return {"patches": total} | {what: total / spent for what, spent in seconds.items()}


def predict(path: Path, model: Path, spacing_um: float, encoder: Any) -> dict[str, float]:
    """Seconds, those of the processor, and peak memory of a prediction in a process of its own."""
    sdata = fresh(path)
    trained = nh.NH2ST.load(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter(), time.process_time()
    nh.pp.grid(sdata, spacing_um=spacing_um)
    nh.tl.predict_expression(sdata, model=trained, encoder=encoder, progress=False)
    seconds, busy = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "spots": sdata.tables["table"].n_obs,
        "seconds": seconds,
        "busy": busy,
        "before": before / 2**20,
        "peak": peak / 2**20,
    }


def alone(function: Any, *arguments: Any) -> Any:
    """Call in a fresh process, whose peak memory is that of the call."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def train_model(folder: Path, encoder: Any, n_genes: int = 50, maps: str = "none") -> Path:
    logging.getLogger("nh2st_scverse").setLevel(logging.ERROR)
    patients = nh.datasets.synthetic(n_sections=2, width_um=1200, n_genes=max(100, n_genes))
    given = {"max_epochs": 2, "n_members": 2, "maps": maps, "progress": False}
    nh.tl.train(patients, encoder=encoder, n_genes=n_genes, **given).save(folder)
    return folder


def encode_maps(width_um: float, path: Path) -> dict[float, tuple[int, float]]:
    """Places, and seconds of the processor to encode them: by pitch with maps, 0 for patches of a few."""
    drawn = nh.datasets.synthetic(width_um=width_um, microns_per_pixel=MICRONS).subset(["section_0_image"])
    drawn.write(path)  # in memory its coarse levels would be made anew for every field of view
    drawn = fresh(path)
    encoder, found, sections = nh.encoders.get(), {}, {}
    for pitch in (100.0, 25.0, 10.0):
        nh.pp.grid(drawn, spacing_um=pitch)
        ((key, shapes),) = drawn.shapes.items()
        elements = Elements(allow=frozenset({"off_tissue"}))
        sections[pitch] = collect_places(drawn, key, shapes, elements, patch_um=PATCH).sections[0]
        del drawn.shapes[key]
    middle = sections[25.0].n_spots // 2
    few = sections[25.0].take(np.arange(middle, middle + 250))  # of fewer, reading is a larger part
    for mapped in ((), FIELDS):  # what is compiled once is no part of it
        encode_section(few, encoder, sight=Sight(PATCH, FIELDS, mapped), progress=False)
    for pitch, section, mapped in ((0.0, few, ()), *((pitch, one, FIELDS) for pitch, one in sections.items())):
        started = time.process_time()
        encode_section(section, encoder, sight=Sight(PATCH, FIELDS, mapped), progress=False)
        found[pitch] = section.n_spots, time.process_time() - started
    return found


PARTS = ("ratio", "memory", "spots", "maps", "costs", "dense")
LOOSE = 1.25  # what counts as a straight line, or as the same memory, on a machine that does other work too


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (default: all)")
    parser.add_argument("--size", type=int, default=40_000, help="side of the slide in px (default: 40000)")
    parser.add_argument("--patches", type=int, default=1000, help="spots for the ratio with the default encoder")
    parser.add_argument("--spots", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--tissue", type=float, default=1.4, help="width in mm of the tissue of the part maps")
    parser.add_argument("--dense", type=int, default=500_000, help="places of the part of that name")
    parser.add_argument("--folder", type=Path, default=None, help="where slides are written and kept")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        return on_slides(options, Path(temporary))


def say(text: str, holds: bool | None = None) -> None:
    """Print a line at once, and whether its target holds."""
    print(text + {None: "", True: "  [holds]", False: "  [does not hold]"}[holds], flush=True)


def on_slides(options: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    folder = options.folder or temporary
    folder.mkdir(parents=True, exist_ok=True)
    slides = {}
    for size in (options.size // 2, options.size):
        slides[size] = folder / f"slide_{size}.zarr"
        if not slides[size].exists():
            started = time.perf_counter()
            alone(write_slide, slides[size], size)
            say(f"wrote {size} x {size} px in {time.perf_counter() - started:.0f} s")
    model = alone(train_model, temporary / "model", Fast())
    found: dict[str, Any] = {}
    if "ratio" in options.parts:
        for name, encoder, n in (("fast", Fast(), 2048), ("default", None, options.patches)):
            one = alone(ratio, slides[options.size], encoder or nh.encoders.get(name), n)
            share = found[f"ratio {name}"] = one["path"] / one["encoder"]
            text = f"{name}, {one['patches']} patches, per second: cutting {one['cutting']:.0f}, "
            if encoder:  # one that takes no time hides nothing
                say(f"{text}whole path {one['path']:.0f}")
            else:
                text += f"encoder {one['encoder']:.0f}, whole path {one['path']:.0f}; path / encoder {share:.2f}"
                say(text, share >= 0.85)
    if "memory" in options.parts:
        for size, path in slides.items():
            one = alone(predict, path, model, 100.0, Fast())
            peak = found[f"peak {size}"] = one["peak"]
            say(
                f"{size} px: {one['spots']} spots at 100 µm in {one['seconds']:.1f} s; peak memory {peak:.2f} GB "
                f"({one['before']:.2f} GB before the call)",
                peak < 3 and peak < 1.15 * found[f"peak {options.size // 2}"],
            )
    if "maps" in options.parts:
        one = alone(encode_maps, 1000 * options.tissue, temporary / "drawn.zarr")
        each = one[0.0][1] / one[0.0][0]  # seconds for a place of patches
        for pitch in (100.0, 25.0, 10.0):
            n, taken = found[f"maps {pitch:g}"] = one[pitch]
            longer, faster = taken / one[100.0][1], each * n / taken
            say(
                f"maps at {pitch:g} µm: {n} places in {taken:.0f} s of processor time, {longer:.2f} times that of "
                f"100 µm; {faster:.1f} times the places per second of patches",
                longer <= 1.3 and (pitch > 25 or faster >= 15),
            )
    if "costs" in options.parts:
        costs(slides[options.size], temporary)
    if "dense" in options.parts:
        dense = alone(train_model, temporary / "dense", Wide(SMALL), 250, "all")
        spacing = float(np.sqrt(TISSUE * (options.size * MICRONS) ** 2 / options.dense / (np.sqrt(3) / 2)))
        one = found["dense"] = alone(predict, slides[options.size], dense, spacing, Wide(SMALL))
        say(
            f"{one['spots']} places, 250 genes: {one['seconds']:.0f} s, peak memory {one['peak']:.2f} GB "
            f"({one['before']:.2f} GB before the call)",
            one["peak"] < 3,
        )
    if "spots" in options.parts:
        area = TISSUE * (options.size * MICRONS) ** 2
        for n in options.spots:
            spacing = float(np.sqrt(area / n / (np.sqrt(3) / 2)))
            one = alone(predict, slides[options.size], model, spacing, Fast(SMALL))
            found[f"spots {n}"] = one
            say(
                f"{one['spots']} spots: {one['seconds']:.1f} s, {one['busy']:.1f} s of processor time, peak memory "
                f"{one['peak']:.2f} GB"
            )
        line([found[f"spots {n}"] for n in options.spots])
    return found


def costs(path: Path, temporary: Path) -> None:
    """A row for each number of places: spots with patches of their own, and dense grids with maps."""
    say("| places | apart | features | minutes | minutes of processor time | peak memory |\n|---|---|---|---|---|---|")
    for maps, pitches in {"none": (100.0, 55.0), "all": (25.0, 10.0)}.items():
        model = alone(train_model, temporary / f"costs_{maps}", nh.encoders.get(device="cpu"), 250, maps)
        for pitch in pitches:
            one = alone(predict, path, model, pitch, None)
            way = "patches" if maps == "none" else "maps"
            minutes = f"{one['seconds'] / 60:.1f} | {one['busy'] / 60:.1f}"
            say(f"| {one['spots']} | {pitch:g} µm | {way} | {minutes} | {one['peak']:.1f} GB |")


def line(measured: list[dict[str, float]]) -> None:
    """The straight line through the fewest and the most spots, and how far those between are from it.

    Of processor time: other work on the machine bends the other one.
    """
    if len(measured) < 3:
        return
    spots, seconds = (np.array([one[what] for one in measured]) for what in ("spots", "busy"))
    slope = (seconds[-1] - seconds[0]) / (spots[-1] - spots[0])
    expected = seconds[0] + slope * (spots - spots[0])
    off = np.abs(seconds / expected - 1)[1:-1].max()
    say(
        f"straight line of processor time: {expected[0] - slope * spots[0]:.1f} s and {1000 * slope:.2f} s per 1,000 "
        f"spots; those between are {off:.0%} off it",
        bool(off < LOOSE - 1),
    )


def test_slide() -> None:
    found = main(["--size", "8000", "--patches", "128", "--parts", "ratio", "memory"])
    assert found["ratio default"] > 0.85
    assert found["peak 8000"] < 3 and found["peak 8000"] < 1.15 * found["peak 4000"]


if __name__ == "__main__":
    main()
