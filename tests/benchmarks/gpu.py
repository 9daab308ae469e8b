"""Encoding, training and prediction on a GPU: speed, memory, and the same results as on the processor.

    python tests/benchmarks/gpu.py                 # some three minutes on a large GPU
    python tests/benchmarks/gpu.py --patches 256   # less

Needs no data and no network. Where torch sees no GPU it says so, and runs the same on the processor, so that the file
itself can be tried anywhere; nothing is then said of a GPU.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import slide
import torch

import nh2st_scverse as nh
from nh2st_scverse.data.features import Sight, encode_section
from nh2st_scverse.data.patches import batches, cut
from nh2st_scverse.data.section import Section, locate_sections

PATCH, FIELDS = 75.0, (1.0, 2.5, 6.0)
NETWORK, DEFAULT = "efficientnet_lite0_stages", "efficientnet_lite0_stages+statistics+texture"


def say(text: str, holds: bool | None = None) -> None:
    """Print a line at once, and whether its target holds."""
    print(text + {None: "", True: "  [holds]", False: "  [does not hold]"}[holds], flush=True)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes until the device is done, and what it gives."""
    started = time.perf_counter()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def memory() -> str:
    """Peak memory of the GPU since the last call."""
    if not torch.cuda.is_available():
        return "no GPU memory"
    held, reserved = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f"peak GPU memory {held:.2f} GB ({reserved:.2f} GB reserved)"


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, in standard deviations of the feature or gene over spots."""
    spread = np.nanstd(a, axis=0)
    return float(np.nanmax(np.abs(a - b) / np.where(spread > 1e-6, spread, np.inf)))


def encoding(section: Section, device: str) -> None:
    """Patches per second of the whole path over those of the encoder alone, and places per second of maps."""
    every = np.arange(section.n_spots)
    for name in (NETWORK, DEFAULT):
        encoder = nh.encoders.get(name, device=device)
        some = batches(section.geometry, every, size_um=PATCH, size_px=encoder.input_size)
        work = [(spots, PATCH * field) for field in FIELDS for spots in some]
        cutting, patches = seconds(lambda: list(cut(section.geometry, work, size_px=encoder.input_size)))  # noqa: B023
        encoder(patches[0])  # kernels are chosen
        alone, _ = seconds(lambda: [encoder(one) for one in patches])  # noqa: B023
        whole, _ = seconds(lambda: encode_section(section, encoder, sight=Sight(PATCH, FIELDS), progress=False))  # noqa: B023
        n = sum(map(len, patches))
        say(
            f"{name}: {n} patches, per second: cutting {n / cutting:.0f}, encoder alone {n / alone:.0f}, whole path "
            f"{n / whole:.0f}; path / encoder {alone / whole:.2f}; {memory()}",
            alone / whole >= 0.9,
        )
        mapped = Sight(PATCH, FIELDS, FIELDS)
        taken, _ = seconds(lambda: encode_section(section, encoder, sight=mapped, progress=False))  # noqa: B023
        say(f"{name}: {section.n_spots / taken:.0f} places per second from maps of all fields; {memory()}")


def agreement(section: Section, device: str) -> None:
    """Features of the processor against those of the GPU."""
    few = section.take(np.arange(min(section.n_spots, 64)))
    encoders = [nh.encoders.get(DEFAULT, device=one) for one in ("cpu", device)]
    for what, mapped in {"patches": (), "maps": FIELDS}.items():
        sight = Sight(PATCH, FIELDS, mapped)
        a, b = (encode_section(few, encoder, sight=sight, progress=False) for encoder in encoders)
        off = apart(a, b)
        say(f"features of {what}, cpu against {device}: {off:.1e} standard deviations apart at most", off < 1e-3)


def predictions(device: str, epochs: int) -> None:
    """One model, trained on the device, that predicts on both."""
    sections = nh.datasets.synthetic(n_sections=2, width_um=1200)
    given: dict[str, Any] = {"encoder": "statistics", "progress": False}
    taken, model = seconds(lambda: nh.tl.train(sections, n_genes=50, max_epochs=epochs, device=device, **given))
    say(f"trained {len(model.members)} members on {device} in {taken:.1f} s; {memory()}")
    found = []
    for one in ("cpu", device):
        nh.tl.predict_expression(sections, model=model, device=one, progress=False, key_added="p", uncertainty=True)
        table = sections["table"]
        predicted = table.var["p"].to_numpy()
        found.append([np.asarray(table.layers[key])[:, predicted] for key in ("p", "p_std")])
    for what, a, b in zip(("predictions", "their standard deviations"), *found, strict=True):
        off = apart(a, b)
        say(f"{what}, cpu against {device}: {off:.1e} standard deviations apart at most", off < 1e-3)


def training(device: str, n: int, epochs: tuple[int, int]) -> None:
    """Epochs per second from the difference of a short and a longer training: what is done once falls out."""
    for one in dict.fromkeys(("cpu", device)):
        slide.bins(500, {"max_epochs": 1, "n_members": 1, "device": one})  # kernels are chosen
        times, counts = [], []
        for many in epochs:
            found = slide.bins(n, {"max_epochs": many, "n_members": 1, "device": one})
            times.append(found["train"])
            counts.append(found["epochs"])
        steps = -(-n // nh.nn.Config().batch_size) * (counts[1] - counts[0])
        more = times[1] - times[0]
        speed = f"{steps / more:.0f} steps per second" if more > 0 else "too short to tell steps per second"
        say(
            f"training on {n} spots, {one}: {speed} ({counts[1]} epochs in {times[1]:.1f} s, {counts[0]} in "
            f"{times[0]:.1f} s); {memory()}"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=3000, help="patches of the encoding, over three fields of view")
    parser.add_argument("--spots", type=int, default=10_000, help="of the training")
    parser.add_argument("--epochs", type=int, nargs=2, default=(2, 12), help="of the two trainings that are compared")
    options = parser.parse_args(arguments)
    logging.getLogger("nh2st_scverse").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU here: all of this is of the processor alone"
    say(f"torch {torch.__version__}, {os.cpu_count()} cores, {name}")
    width = 100 * np.sqrt(options.patches / len(FIELDS)) * 1.3  # µm: spots of 100 µm that lie on tissue
    section = locate_sections(nh.datasets.synthetic(width_um=max(700.0, float(width)), microns_per_pixel=0.5))[0]
    for part in (
        lambda: encoding(section, device),
        lambda: agreement(section, device),
        lambda: predictions(device, 10),
        lambda: training(device, options.spots, tuple(options.epochs)),
    ):
        taken, _ = seconds(part)
        say(f"  ({taken:.0f} s)")


if __name__ == "__main__":
    main()
