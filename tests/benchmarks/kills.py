"""A folder of slides through ``nh2st predict``, killed with SIGKILL twice and started again, and ``nh2st report``.

``python tests/benchmarks/kills.py`` (30 drawn slides, two of them broken; about three minutes of one core). Printed are
the slides that were done at each kill, those whose values equal a run that nobody stopped, the failures and the
reports. The exit status is 1 unless all is as it should be. tests/test_cli.py does the same with a few slides.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import spatialdata as sd
import tifffile

import nh2st_scverse as nh
from nh2st_scverse import archive

COMMAND = [sys.executable, "-m", "nh2st_scverse.cli"]


def make_slides(folder: Path, n: int) -> list[str]:
    """Draw slides, the second and the last of which are no images; the names of those two."""
    folder.mkdir()
    image = nh.datasets.synthetic(width_um=700)["section_0_image"]["scale0"].image
    pixels = np.moveaxis(np.asarray(image), 0, -1)
    names = [f"s{i:03d}" for i in range(n)]
    for i, name in enumerate(names):
        metadata = {"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "µm", "axes": "YXS"}
        tifffile.imwrite(folder / f"{name}.ome.tif", np.roll(pixels, 20 * i, axis=1), metadata=metadata)
    broken = [names[1], names[-1]]
    for name in broken:
        (folder / f"{name}.ome.tif").write_bytes(b"II*\0 and then nothing")
    return broken


def kill_at(command: list[str], out: Path, n_done: int) -> int:
    """Run a command until this many slides are done, and kill it; how many were done by then."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:  # type: ignore[call-overload]
        while process.poll() is None and len(list(out.glob("s*.zarr"))) < n_done:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    return len(list(out.glob("s*.zarr")))


def main() -> int:
    """Print what came out; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slides", type=int, default=30)
    n = parser.parse_args().slides
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broken = make_slides(folder / "slides", n)
        sections = nh.datasets.synthetic(n_sections=2, width_um=1200)
        small = {"n_genes": 8, "max_epochs": 1, "n_members": 1, "encoder": "statistics", "fields": (1.0,)}
        model = nh.tl.train(sections, progress=False, **small).save(folder / "model")
        predict = [*COMMAND, "predict", str(folder / "slides"), "--model", str(model), "--out"]
        killed, whole, pages = folder / "killed", folder / "whole", folder / "pages"
        kills = [kill_at([*predict, str(killed)], killed, at) for at in (n // 5, n // 2)]
        begun = {path.name: path.stat().st_mtime_ns for path in killed.glob("s*.zarr")}
        for out in (killed, whole):
            subprocess.run([*predict, str(out)], capture_output=True)
        stores = sorted(path.name for path in killed.glob("s*.zarr"))
        equal = sum(
            np.array_equal(*(sd.read_zarr(out / store)["table"].X for out in (killed, whole))) for store in stores
        )
        again = sum((killed / store).stat().st_mtime_ns != when for store, when in begun.items())
        table = pd.read_csv(killed / archive.SLIDES, index_col=0)
        failures = list(table.index[table["status"] == "failed"])
        subprocess.run([*COMMAND, "report", str(killed), "--out", str(pages)], capture_output=True)
        reports = sorted(path.stem for path in pages.glob("*.html"))
        left_over = {path.name for path in killed.iterdir()} ^ {path.name for path in whole.iterdir()}
    print(f"{n} slides; killed when {kills[0]} and {kills[1]} were done, none of which was done again: {again == 0}")
    print(f"{len(stores)} outputs, {equal} of them equal those of an uninterrupted run; left over: {sorted(left_over)}")
    print(f"failures: {failures}; {len(reports)} reports, one for each output: {reports == [s[:-5] for s in stores]}")
    right = equal == len(stores) == n - 2 and failures == broken and not again and not left_over
    return int(not (right and len(reports) == n - 2 and kills[0] < kills[1] < n - 2))


if __name__ == "__main__":
    sys.exit(main())
