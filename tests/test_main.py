"""``python -m nh2st_scverse`` leaves what it says."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import spatialdata as sd
from PIL import Image

import nh2st_scverse as nh
from nh2st_scverse.__main__ import main


@pytest.mark.slow
def test_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "out"
    nh.datasets.synthetic(width_um=800).write(folder / "section.zarr")  # of an earlier run, which this one replaces
    (folder / "gene_scores.csv").write_text("old")
    assert main(["--folder", str(folder), "--width", "1500", "--epochs", "2"]) == folder

    printed = capsys.readouterr().out
    written = {path.name for path in folder.iterdir()}
    assert written == {"section.zarr", "expression.png", "gene_scores.png", "clusters.png", "gene_scores.csv"}
    assert all(name in printed for name in written)
    for name in ("expression.png", "gene_scores.png", "clusters.png"):
        assert min(Image.open(folder / name).size) > 300

    table = sd.read_zarr(folder / "section.zarr")["table"]
    assert table.var["nh2st"].all()
    assert {"leiden_measured", "leiden_predicted"} <= set(table.obs)
    assert "moranI" in table.uns
    scores = pd.read_csv(folder / "gene_scores.csv", index_col=0)
    assert len(scores) == table.n_vars
    assert scores["pearson"].is_monotonic_decreasing
    assert {"ceiling", "of_ceiling", "program", "moran_predicted"} <= set(scores)
    assert f"mean {scores['pearson'].mean():.2f}" in printed
