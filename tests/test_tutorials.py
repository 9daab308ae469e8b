"""The tutorials run as they are, and so does the code of the README."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import tifffile
from jupyter_client import KernelManager
from nbclient import NotebookClient
from PIL import Image

import nh2st_scverse as nh
from nh2st_scverse.nn import Config

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def figures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", {})]


# The same calls in less time: an epoch of a small network, and colours in place of the default features, which the
# quickstart keeps.
QUICK = """
def quicken():
    import functools
    from lightning.fabric.utilities import registry
    import numpy as np
    import nh2st_scverse as nh
    from nh2st_scverse.nn import Config

    whole, mixed = Config.preset, np.random.default_rng(0).normal(size=(6, 1704)).astype("float32")

    def preset(name="default", *, max_epochs=1, **changes):
        return whole(name, max_epochs=min(max_epochs, 1), **{"embedding": 32, "hidden": 32, "bottleneck": 32} | changes)

    def encode(self, patches):
        small = patches[:, ::4, ::4] / np.float32(255)
        return np.concatenate([small.mean(axis=(1, 2)), small.std(axis=(1, 2))], axis=1) @ mixed[:, : self.dim]

    Config.preset, nh.tl._report.DPI = preset, 30
    registry.entry_points = functools.cache(registry.entry_points)
    for encoder in (nh.encoders.EfficientNetLite0, nh.encoders.Statistics, nh.encoders.Texture):
        encoder.__call__ = encode
        encoder.input_size = property(lambda self: 48, lambda self, side: vars(self).update(input_size=side))

quicken()
"""
# Once: imports, which no search for what can be freed goes through again, and small figures.
BEGIN = """
import gc
import matplotlib.pyplot as plt
import scanpy, spatialdata_io, spatialdata_plot, squidpy
plt.rcParams["figure.dpi"] = 30
gc.freeze()
gc.set_threshold(2000)
"""
FRESH = """
%reset -f
import os
os.chdir({folder!r})
del os
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One process for all tutorials, which begins without a name for each: imports would be most of its time."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    try:
        cells = [nbformat.v4.new_code_cell(code) for code in (QUICK, BEGIN)]
        run(nbformat.v4.new_notebook(cells=cells), manager)
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def run(notebook: nbformat.NotebookNode, kernel: KernelManager) -> None:
    """Execute the cells in a kernel that is running; raises with the cell and its traceback."""
    client = NotebookClient(notebook, km=kernel, timeout=600)
    try:
        client.execute()
    finally:
        if client.kc is not None:  # it is None where the tests themselves were ended
            client.kc.stop_channels()


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path: Path, kernel: KernelManager, tmp_path: Path):
    notebook = nbformat.read(path, as_version=4)
    kept = figures(notebook)
    assert len(kept) >= 1
    run(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FRESH.format(folder=str(tmp_path)))]), kernel)
    run(notebook, kernel)
    assert len(figures(notebook)) == len(kept)


@pytest.mark.parametrize(
    "path", [*TUTORIALS, *sorted((ROOT / "notebooks").glob("*.ipynb"))], ids=lambda path: path.stem
)
def test_notebooks_are_clean(path: Path):
    """Run from top to bottom, with outputs, and without paths of the machine or times in them."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [cell for cell in code if "execution" in cell.metadata]
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(f"{output.get('text', '')}{output.get('data', {}).get('text/plain', '')}" for output in outputs)
    assert not re.search(r"(/(root|home|tmp|work|opt|Users)/|[A-Z]:\\)", text)
    assert not re.search(r"0x[0-9a-f]{8}", text)  # where an object was in memory
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.slow
def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: None)
    kinds = (nh.encoders.EfficientNetLite0, nh.encoders.Statistics, nh.encoders.Texture)
    for owner, name in ((Config, "preset"), (nh.tl._report, "DPI"), *product(kinds, ("__call__", "input_size"))):
        monkeypatch.setattr(owner, name, getattr(owner, name, None), raising=False)  # to have it back
    exec(QUICK, {})
    section = nh.datasets.synthetic(width_um=1600, seed=3)
    nh.datasets.space_ranger_folder(section, path="my_visium")
    section["table"].write_h5ad("my_section.h5ad")
    Image.open(tmp_path / "my_visium" / "tissue.tif").save("my_image.png")
    with Image.open("my_image.png") as picture:
        tifffile.imwrite("slide.svs", np.asarray(picture), tile=(256, 256), resolution=(10000, 10000), resolutionunit=3)

    assert len(BLOCKS) == 7
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)  # what a reader would type
        plt.close("all")
        if "leiden" in block:
            assert "leiden" in names["adata"].obs
    assert (tmp_path / "my_section.zarr").is_dir()
    assert (tmp_path / "report.html").is_file()
    assert len(names["model"].genes) == 100
    assert names["sdata"]["table"].var["nh2st"].sum() == 100
    assert names["slide"]["table"].n_obs == len(names["slide"]["nh2st_grid"]) > 50
