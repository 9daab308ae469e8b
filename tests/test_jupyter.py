"""What a mistake looks like in Jupyter: short, about the mistake, and before anything was computed."""

from __future__ import annotations

import re

import pytest
from IPython.core.interactiveshell import InteractiveShell
from spatialdata import SpatialData

import nh2st_scverse as nh


@pytest.fixture(scope="module")
def shell() -> InteractiveShell:
    shell = InteractiveShell(colors="nocolor")
    shell.push({"nh": nh, "sdata": nh.datasets.synthetic(width_um=800), "nothing": SpatialData()})
    return shell


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("nh.tl.predict_expression(sdata, table_key='counts')", "counts.*Available tables"),
        ("nh.tl.predict_expression(sdata, max_epoch=3)", "max_epoch"),
        ("nh.tl.predict_expression(sdata, microns_per_pixel=0)", "microns_per_pixel to be a number above 0"),
        ("nh.tl.train(sdata, trainer_kwargs={'device': 4})", r"found \['device'\]\. Similar: \['devices'\]"),
        ("nh.tl.train(sdata, encoder='uni')", "encoder= to be one of.*'uni'"),
        ("nh.tl.train(sdata['table'])", "found AnnData.*nh.io.from_anndata"),
        ("nh.tl.train(nothing)", "Expected a table that annotates spots"),
        ("nh.tl.evaluate(sdata)", r"No table has a prediction 'nh2st'.*Make them with nh\.tl\.predict_expression"),
        ("nh.pl.expression(sdata)", "found none. Make them with nh.tl.predict_expression"),
        ("nh.NH2ST.load('nowhere')", "Expected a model saved with"),
    ],
)
def test_mistakes_are_shown_in_short(shell: InteractiveShell, capsys: pytest.CaptureFixture, call: str, words: str):
    result = shell.run_cell(call)
    shown = capsys.readouterr().out
    assert isinstance(result.error_in_exec, TypeError | ValueError | KeyError | FileNotFoundError)
    assert re.search(words, shown.strip().splitlines()[-1])
    assert "direct cause" not in shown and "During handling" not in shown
    frames = re.findall(r"^File (?!<ipython)(\S+)", shown, flags=re.MULTILINE)
    # not through Lightning, torch or dask; <string> is where a dataclass checks its values
    assert all("nh2st_scverse" in frame or frame.startswith("<string>") for frame in frames)
    assert 1 <= len(frames) <= 8  # from the call to the check
