"""``nh2st`` and the archive behind it: many slides, some of them broken, and calls that are killed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
from click.testing import CliRunner, Result

import nh2st_scverse as nh
from nh2st_scverse import archive
from nh2st_scverse.cli import main

N_SLIDES = 8


CALL = """
import runpy
sys.argv[1:] = {command!r}
runpy.run_module("nh2st_scverse.cli", run_name="__main__")
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections = nh.datasets.synthetic(n_sections=2, width_um=1200)
    trained = nh.tl.train(
        sections, n_genes=8, max_epochs=1, n_members=1, encoder="statistics", fields=(1.0,), progress=False
    )
    return trained.save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of slides, the second and the last of which are no images."""
    folder = tmp_path_factory.mktemp("slides")
    image = nh.datasets.synthetic(width_um=700)["section_0_image"]["scale0"].image
    pixels = np.moveaxis(np.asarray(image), 0, -1)
    for i in range(N_SLIDES):
        metadata = {"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "µm", "axes": "YXS"}
        tifffile.imwrite(folder / f"s{i}.ome.tif", np.roll(pixels, 30 * i, axis=1), metadata=metadata)
    for broken in ("s1.ome.tif", f"s{N_SLIDES - 1}.ome.tif"):
        (folder / broken).write_bytes(b"II*\0 and then nothing")
    return folder


# ----------------------------------------------------------------------------------------------------- which slides


def test_finds_stores_slides_and_space_ranger_folders(tmp_path: Path) -> None:
    section = nh.datasets.synthetic(width_um=700)
    nh.datasets.space_ranger_folder(section, path=tmp_path / "visium")
    section.write(tmp_path / "store.zarr")
    tifffile.imwrite(tmp_path / "slide.svs", np.zeros((64, 64, 3), dtype=np.uint8))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden.svs").write_bytes(b"")
    found = archive.find([tmp_path])
    assert [one.name for one in found] == ["slide", "store", "visium"]
    assert [one.name for one in archive.find([tmp_path / "store.zarr", tmp_path / "slide.svs"])] == ["slide", "store"]
    for one in found[1:]:
        assert archive.read(one).tables["table"].n_obs == section["table"].n_obs
    with pytest.raises(ValueError, match="Expected slides of different names"):
        archive.find([tmp_path, tmp_path / "slide.svs"])
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        archive.find([tmp_path / "elsewhere"])
    with pytest.raises(FileNotFoundError, match=r"found none"):
        archive.find([tmp_path / "notes.txt"])


# ------------------------------------------------------------------------------------------------ done once, or told


def test_predicts_a_folder_and_goes_on_after_kills(slides: Path, model: Path, tmp_path: Path, start: Any) -> None:
    """Killed twice, the results are those of one call; what is broken is a row, and the rest is done."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = ["predict", str(slides), "--model", str(model), "--out", str(killed)]
    for n in (1, 3):  # slides that are done when it is killed
        process = start(CALL.format(command=command), tmp_path / f"call {n}")
        deadline = time.monotonic() + 120
        while len(list(killed.glob("s*.zarr"))) < n and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.join()
        assert n <= len(list(killed.glob("s*.zarr"))) < N_SLIDES - 2
    begun = {path.name: path.stat().st_mtime_ns for path in killed.glob("s*.zarr")}
    for out in (killed, whole):
        result = run("predict", slides, "--model", model, "--out", out)
        assert result.exit_code == 1  # some failed
        assert f"{N_SLIDES - 2} of {N_SLIDES} slides are done" in result.output
        assert result.output.count("failed: s") == 2
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}  # nothing is left over
    for name in begun:
        assert (killed / name).stat().st_mtime_ns == begun[name]  # done once
    for store in killed.glob("*.zarr"):
        one, other = (sd.read_zarr(folder / store.name)["table"] for folder in (killed, whole))
        assert np.array_equal(one.X, other.X) and one.n_obs > 10
    rows = pd.read_csv(killed / archive.SLIDES, index_col=0)
    assert list(rows.index) == [f"s{i}" for i in range(N_SLIDES)]
    assert list(rows.index[rows["status"] == "failed"]) == ["s1", f"s{N_SLIDES - 1}"]
    assert rows.loc["s1", "error"].startswith("ValueError: ")

    again = run("predict", slides, "--model", model, "--out", killed, "--uncertainty")  # other settings
    assert again.exit_code == 1 and "choose another --out" in again.output
    one = archive.find([slides])[0]
    state = json.loads((killed / archive.STATE).read_text())
    assert state["slides"]["s0"]["stamp"] == one.stamp


def test_a_slide_that_changed_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.tif", "b.tif"):
        (tmp_path / "in" / name).write_text(name)
    done: list[str] = []

    def job(source: archive.Source, path: Path) -> None:
        done.append(source.name)
        path.write_text(source.path.read_text())

    def go(**settings: int) -> pd.DataFrame:
        sources = archive.find([tmp_path / "in"])
        return archive.each(
            sources, tmp_path / "out", ".txt", command="copy", settings=settings, job=job, progress=False
        )

    assert list(go(n=1)["status"]) == ["done", "done"]
    go(n=1)
    assert done == ["a", "b"]
    (tmp_path / "in" / "b.tif").write_text("changed")
    (tmp_path / "out" / "a.txt").unlink()
    (tmp_path / "out" / f"{archive.UNFINISHED}a.txt").write_text("half")
    go(n=1)
    assert done == ["a", "b", "a", "b"]
    assert (tmp_path / "out" / "b.txt").read_text() == "changed"
    assert not list((tmp_path / "out").glob(f"{archive.UNFINISHED}*"))
    with pytest.raises(
        ValueError, match=r"holds results of `nh2st copy` with \{'n': 1\}, expected those .* \{'n': 2\}"
    ):
        go(n=2)
    (tmp_path / "out" / archive.STATE).write_text("{")
    with pytest.raises(ValueError, match="is not a list of results"):
        go(n=1)


def test_interrupted_says_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_text("a")

    def job(source: archive.Source, path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.each(archive.find([tmp_path / "in"]), tmp_path / "out", ".txt", command="c", settings={}, job=job)
    assert "the same command goes on" in caplog.text
    assert not (tmp_path / "out" / "a.txt").exists()


# -------------------------------------------------------------------------------------------------------- commands


def test_check_train_evaluate_and_report(tmp_path: Path) -> None:
    for i in range(2):
        nh.datasets.synthetic(width_um=1200, seed=i).write(tmp_path / "sections" / f"p{i}.zarr")
    groups = tmp_path / "groups.csv"
    groups.write_text("slide,group\np0,one\np1,two\n")
    few = ("--n-genes", 8, "--epochs", 1, "--encoder", "statistics")

    checked = run("check", tmp_path / "sections", "--out", tmp_path / "check.csv")
    assert checked.exit_code == 0, checked.output
    assert set(pd.read_csv(tmp_path / "check.csv")["slide"]) == {"p0", "p1"}

    trained = run("train", tmp_path / "sections", "--out", tmp_path / "model", "--groups", groups, *few)
    assert trained.exit_code == 0, trained.output
    assert set(nh.NH2ST.load(tmp_path / "model").card.trained_on.values()) == {"one", "two"}
    again = run("train", tmp_path / "sections", "--out", tmp_path / "model", *few)
    assert again.exit_code == 1 and "choose another --out" in again.output
    groups.write_text("slide,group\np0,one\n")
    alone = run("train", tmp_path / "sections", "--out", tmp_path / "other", "--groups", groups, *few)
    assert alone.exit_code == 1 and "found none of ['p1']" in alone.output

    store, out = tmp_path / "sections" / "p0.zarr", tmp_path / "predicted"
    assert run("predict", store, "--model", tmp_path / "model", "--out", out, "--with-image").exit_code == 0
    scored = run("evaluate", out, "--out", tmp_path / "scores")
    assert scored.exit_code == 0 and "p0: mean Pearson" in scored.output
    assert len(pd.read_csv(tmp_path / "scores" / "p0.csv")) == 8
    assert run("report", out, "--out", tmp_path / "pages").exit_code == 0
    assert "<h1>Predicted expression of section_0_spots</h1>" in (tmp_path / "pages" / "p0.html").read_text()
    assert "No table has a prediction" in run("report", store, "--out", tmp_path / "none").output


def test_mistakes_are_messages(tmp_path: Path, model: Path) -> None:
    for arguments, expected in {
        ("check", tmp_path / "nothing"): "there is nothing",
        ("predict", tmp_path, "--model", tmp_path / "no", "--out", tmp_path / "out"): "no",
        ("predict", tmp_path, "--model", model, "--out", tmp_path / "out"): "found none",
        (
            "predict",
            tmp_path,
            "--model",
            model,
            "--out",
            tmp_path / "out",
            "--client",
            "tcp://127.0.0.1:9",
        ): "scheduler",
    }.items():
        result = run(*arguments)
        assert result.exit_code == 1 and "Error: " in result.output and expected in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
