from __future__ import annotations

import gzip
import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import spatialdata as sd
from scipy import sparse
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh

PITCH = 40  # px per place of the array: 5 µm per pixel
GENES = ["ACTB", "ERBB2", "MALAT1"]


def image_array(height: int = 700, width: int = 900) -> np.ndarray:
    """Every pixel tells where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y % 256, x % 256, (y // 256) * 16 + x // 256], axis=-1).astype(np.uint8)


def tables(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts and spot table of an array of 12 x 10 places, rows of the two in different order."""
    rng = np.random.default_rng(seed)
    x, y = (a.ravel() for a in np.meshgrid(np.arange(3, 15), np.arange(5, 15)))
    jitter = rng.normal(0, 0.04, (2, len(x)))
    spots = pd.DataFrame({"x": x, "y": y, "new_x": x + jitter[0], "new_y": y + jitter[1]})
    spots["pixel_x"] = (spots["new_x"] * PITCH + 10).round(2)
    spots["pixel_y"] = (spots["new_y"] * PITCH + 10).round(2)
    spots["selected"] = 1
    names = [f"{a}x{b}" for a, b in zip(x, y, strict=True)]
    counts = pd.DataFrame(rng.poisson(2, (len(x), 3)), index=names, columns=GENES)
    counts["ACTB"] = x * 100 + y  # names the spot
    return counts.iloc[rng.permutation(len(x))], spots.iloc[rng.permutation(len(x))].reset_index(drop=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Section A1 with permuted rows; two spots are not selected, the spot table lacks two, the counts one."""
    counts, spots = tables()
    spots.loc[spots.query("(x == 3 and y == 5) or (x == 4 and y == 6)").index, "selected"] = 0
    spots = spots.query("not (x == 7 and y == 7) and not (x == 8 and y == 9)")
    counts = counts.drop(index="10x10")  # selected, but not counted
    for folder in ("ST-imgs/A/A1", "ST-cnts", "ST-spotfiles"):
        (tmp_path / folder).mkdir(parents=True)
    PIL.Image.fromarray(image_array()).save(tmp_path / "ST-imgs/A/A1/HE.png")
    counts.to_csv(tmp_path / "ST-cnts/A1.tsv.gz", sep="\t")
    spots.to_csv(tmp_path / "ST-spotfiles/A1_selection.tsv", sep="\t", index=False)
    return tmp_path


def assert_rows_belong_together(sdata: sd.SpatialData, section: str) -> None:
    """Counts, coordinates and array places of each spot are those of its name."""
    table, shapes = sdata["table"], sdata[f"{section}_spots"].loc[sdata["table"].obs["spot_id"]]
    x, y = (np.array([int(n.split("x")[i]) for n in table.obs_names]) for i in (0, 1))
    np.testing.assert_array_equal(table.obs["array_col"], x)
    np.testing.assert_array_equal(table.obs["array_row"], y)
    np.testing.assert_array_equal(np.asarray(table[:, "ACTB"].X.todense()).ravel(), x * 100 + y)
    np.testing.assert_allclose(shapes.geometry.x, x * PITCH + 10, atol=10)
    np.testing.assert_allclose(shapes.geometry.y, y * PITCH + 10, atol=10)
    np.testing.assert_array_equal(table.obsm["spatial"], np.column_stack([shapes.geometry.x, shapes.geometry.y]))


def test_her2st_layout(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="nh2st_scverse"):
        sdata = nh.io.her2st(root, "A1")
    assert "dropped 4 of 119 spots with counts: 2 not in the spot table, 2 not selected" in caplog.text
    assert "1 selected spots of the spot table have no counts" in caplog.text

    table = sdata["table"]
    assert table.shape == (115, 3)
    assert sparse.issparse(table.X) and table.X.format == "csr" and table.X.dtype == np.float32
    assert list(table.var_names) == GENES
    assert not {"3x5", "4x6", "7x7", "8x9", "10x10"} & set(table.obs_names)
    assert_rows_belong_together(sdata, "A1")

    assert set(sdata.coordinate_systems) == {"A1", "A1_microns"}
    assert isinstance(table.obs["region"].dtype, pd.CategoricalDtype)
    assert table.uns["spatialdata_attrs"]["region"] == "A1_spots"
    for element in ("A1_image", "A1_spots"):
        matrix = get_transformation(sdata[element], "A1_microns").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(matrix, np.diag([5, 5, 1]), rtol=0.01)
        same = get_transformation(sdata[element], "A1").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_array_equal(same, np.eye(3))
    np.testing.assert_allclose(sdata["A1_spots"].radius, 10, rtol=0.01)  # 100 µm wide

    image = sdata["A1_image"]["scale0"]["image"]
    assert image.dims == ("c", "y", "x") and list(image.c.values) == ["r", "g", "b"] and image.dtype == np.uint8
    np.testing.assert_array_equal(image.values, image_array().transpose(2, 0, 1))


def test_round_trip(root: Path, tmp_path: Path) -> None:
    sdata = nh.io.her2st(root, "A1")
    sdata.write(tmp_path / "a.zarr")
    back = sd.read_zarr(tmp_path / "a.zarr")
    assert set(back.coordinate_systems) == {"A1", "A1_microns"}
    for element in ("A1_image", "A1_spots"):
        now, before = (
            get_transformation(o[element], "A1_microns").to_affine_matrix(("x", "y"), ("x", "y")) for o in (back, sdata)
        )
        np.testing.assert_allclose(now, before)
    np.testing.assert_array_equal(back["A1_spots"].radius, sdata["A1_spots"].radius)
    for level in sdata["A1_image"]:
        np.testing.assert_array_equal(back["A1_image"][level]["image"].values, sdata["A1_image"][level]["image"].values)
    assert_rows_belong_together(back, "A1")


def test_two_sections_concatenate(root: Path) -> None:
    one, two = nh.io.her2st(root, "A1"), nh.io.spatial_transcriptomics(image_array(), *tables(), section="other")
    both = sd.concatenate([one, two], concatenate_tables=True, obs_names_make_unique=True)
    assert set(both["table"].obs["region"]) == {"A1_spots", "other_spots"}
    assert {"A1_microns", "other_microns"} <= set(both.coordinate_systems)


def test_plain_tsv_and_other_layouts_give_the_same(root: Path, tmp_path: Path) -> None:
    expected = nh.io.her2st(root, "A1")["table"]
    text = gzip.decompress((root / "ST-cnts/A1.tsv.gz").read_bytes()).decode()
    (root / "ST-cnts/A1.tsv.gz").unlink()
    (root / "ST-cnts/A1.tsv").write_text(text)
    assert (nh.io.her2st(root, "A1")["table"].X != expected.X).nnz == 0

    frame = pd.read_csv(root / "ST-cnts/A1.tsv", sep="\t", index_col=0)
    spots = pd.read_csv(root / "ST-spotfiles/A1_selection.tsv", sep="\t")
    frame.to_csv(tmp_path / "counts.csv")
    spots.to_csv(tmp_path / "spots.csv", index=False)
    as_r = text.removeprefix("\t")  # R leaves out the name of the first column
    (tmp_path / "r.tsv").write_text(as_r)
    assert as_r.startswith("ACTB")
    adata = ad.AnnData(frame.astype(np.float32))
    adata.var["symbol"] = GENES
    for counts in (tmp_path / "counts.csv", tmp_path / "r.tsv", frame, adata):
        for places in (tmp_path / "spots.csv", spots):
            table = nh.io.spatial_transcriptomics(image_array(), counts, places)["table"]
            assert list(table.obs_names) == list(expected.obs_names)
            assert list(table.var_names) == GENES
            assert (table.X != expected.X).nnz == 0
    assert list(table.var["symbol"]) == GENES


def test_inputs_are_left_alone() -> None:
    counts, spots = tables()
    adata = ad.AnnData(counts.astype(np.float32))
    image = image_array()
    before = counts.copy(), spots.copy(), adata.copy(), image.copy()
    nh.io.spatial_transcriptomics(image, counts, spots)
    nh.io.spatial_transcriptomics(image, adata, spots)
    pd.testing.assert_frame_equal(counts, before[0])
    pd.testing.assert_frame_equal(spots, before[1])
    pd.testing.assert_frame_equal(adata.obs, before[2].obs)
    assert not adata.uns and not adata.obsm and isinstance(adata.X, np.ndarray)
    np.testing.assert_array_equal(image, before[3])


def test_all_spots_when_asked_for(root: Path) -> None:
    assert nh.io.her2st(root, "A1", selected_only=False)["table"].n_obs == 117


def microns(sdata: sd.SpatialData, section: str = "section") -> float:
    return float(
        get_transformation(sdata[f"{section}_image"], f"{section}_microns").to_affine_matrix(("x",), ("x",))[0, 0]
    )


def test_microns_per_pixel() -> None:
    counts, spots = tables()
    image = image_array()
    assert microns(nh.io.spatial_transcriptomics(image, counts, spots)) == pytest.approx(5, rel=0.005)
    assert microns(nh.io.spatial_transcriptomics(image, counts, spots, microns_per_pixel=4.9)) == 4.9
    assert microns(nh.io.spatial_transcriptomics(image, counts, spots, spot_pitch=150)) == pytest.approx(
        3.75, rel=0.005
    )
    spots.loc[:3, "pixel_x"] = 1  # a few spots far off do not matter
    assert microns(nh.io.spatial_transcriptomics(image, counts, spots)) == pytest.approx(5, rel=0.005)


def test_image_scale() -> None:
    counts, spots = tables()
    sdata = nh.io.spatial_transcriptomics(image_array(350, 450), counts, spots, image_scale=0.5)
    assert microns(sdata) == pytest.approx(10, rel=0.005)
    np.testing.assert_allclose(sdata["section_spots"].radius, 5, rtol=0.005)
    np.testing.assert_allclose(sdata["section_spots"].geometry.x, sdata["table"].obs["array_col"] * 20 + 5, atol=5)


def test_section_is_named_after_the_image(tmp_path: Path) -> None:
    counts, spots = tables()
    PIL.Image.fromarray(image_array()).save(tmp_path / "HE of A1 (new).png")
    sdata = nh.io.spatial_transcriptomics(tmp_path / "HE of A1 (new).png", counts, spots)
    assert list(sdata.images) == ["HE_of_A1_new_image"]
    with pytest.raises(ValueError, match="section='my_section'"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots, section="my section")


def test_her2st_says_what_is_missing(root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"ST-cnts/B1.tsv.gz.*ST-spotfiles/B1_selection.tsv.*Complete sections.*: A1\."
    ):
        nh.io.her2st(root, "B1")
    (root / "ST-spotfiles/A1_selection.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected spots .*A1_selection.tsv\. Complete sections.*none"):
        nh.io.her2st(root, "A1")
    with pytest.raises(FileNotFoundError, match="no folder"):
        nh.io.her2st(root / "elsewhere", "A1")


def test_her2st_with_two_images(root: Path) -> None:
    PIL.Image.fromarray(image_array()).save(root / "ST-imgs/A/A1/other.jpg")
    with pytest.raises(ValueError, match=r"Expected one image.*HE.png, other.jpg"):
        nh.io.her2st(root, "A1")


def test_no_spot_in_common() -> None:
    counts, spots = tables()
    with pytest.raises(ValueError, match=r"No spot of the counts.*Counts: spot_\d+x.*spot table.*: \d+x\d+"):
        nh.io.spatial_transcriptomics(image_array(), counts.rename(index=lambda n: f"spot_{n}"), spots)
    with pytest.raises(ValueError, match="pass the transposed table"):
        nh.io.spatial_transcriptomics(image_array(), counts.T, spots)
    with pytest.raises(ValueError, match="None of the 120 spots with counts is selected"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots.assign(selected=0))


def test_counts_that_are_no_counts(tmp_path: Path) -> None:
    counts, spots = tables()
    for value, match in ((-1, "negative, in the genes ERBB2"), (np.nan, r"missing \(NaN\), in the genes ERBB2")):
        bad = counts.astype(float)
        bad.iloc[3, 1] = value
        bad.to_csv(tmp_path / "bad.tsv", sep="\t")
        for given in (
            bad,
            tmp_path / "bad.tsv",
            ad.AnnData(bad),
            ad.AnnData(sparse.csr_matrix(bad), bad[[]], bad.T[[]]),
        ):
            with pytest.raises(ValueError, match=match):
                nh.io.spatial_transcriptomics(image_array(), given, spots)
    bad = counts.astype(object)
    bad.iloc[3, 2] = "many"
    bad.to_csv(tmp_path / "bad.tsv", sep="\t")
    with pytest.raises(ValueError, match="text in the genes MALAT1"):
        nh.io.spatial_transcriptomics(image_array(), tmp_path / "bad.tsv", spots)


def test_duplicated_names(tmp_path: Path) -> None:
    counts, spots = tables()
    genes = counts.set_axis(["ACTB", "ERBB2", "ACTB"], axis=1)
    genes.to_csv(tmp_path / "genes.tsv", sep="\t")
    for given in (genes, tmp_path / "genes.tsv"):
        with pytest.raises(ValueError, match=r"unique gene names in the counts, found 1 .*'ACTB'"):
            nh.io.spatial_transcriptomics(image_array(), given, spots)
    with pytest.raises(ValueError, match=f"unique spot names in the counts, found 1 .*'{counts.index[0]}'"):
        nh.io.spatial_transcriptomics(image_array(), pd.concat([counts, counts[:1]]), spots)
    name = f"{spots.x[0]}x{spots.y[0]}"
    with pytest.raises(ValueError, match=f"unique spots in the spot table, found 1 .*'{name}'"):
        nh.io.spatial_transcriptomics(image_array(), counts, pd.concat([spots, spots[:1]]))


def test_spots_outside_the_image() -> None:
    counts, spots = tables()
    with pytest.raises(ValueError, match=r"of 120 spots are outside the image, which is 450 x 350 px.*`image_scale=`"):
        nh.io.spatial_transcriptomics(image_array(350, 450), counts, spots)
    wide = spots.query("y < 11").assign(pixel_x=spots.pixel_y, pixel_y=spots.pixel_x)
    with pytest.raises(
        ValueError, match="x and y swapped all spots are inside: swap the columns `pixel_x` and `pixel_y`"
    ):
        nh.io.spatial_transcriptomics(image_array(450, 620), counts, wide)
    with pytest.raises(ValueError, match="spots without"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots.assign(pixel_x=np.nan))


def test_swapped_columns_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    counts, spots = tables()
    swapped = spots.rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"})
    with caplog.at_level(logging.INFO, logger="nh2st_scverse"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots)
        assert "swapped" not in caplog.text
        nh.io.spatial_transcriptomics(image_array(), counts, swapped)
    assert "`pixel_x` and `pixel_y` are swapped" in caplog.text


def test_resolution_that_cannot_be_derived() -> None:
    counts, spots = tables()
    row = spots.query("y == 8")
    with pytest.raises(ValueError, match=r"do not span an area.*Pass `microns_per_pixel=`"):
        nh.io.spatial_transcriptomics(image_array(), counts, row)
    shuffled = spots.assign(pixel_x=np.random.default_rng(0).permutation(spots.pixel_x))
    with pytest.raises(ValueError, match="do not follow the array coordinates"):
        nh.io.spatial_transcriptomics(image_array(), counts, shuffled)
    with pytest.raises(ValueError, match="spot_pitch to be a number above 0, found -200"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots, spot_pitch=-200)
    with pytest.raises(ValueError, match="Spots of 100 µm would overlap: their centres are 20"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots, microns_per_pixel=0.5)


def test_spot_tables_that_are_none(tmp_path: Path) -> None:
    counts, spots = tables()
    with pytest.raises(ValueError, match="no column pixel_x, pixel_y; found: x, y, new_x, new_y, selected"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots.drop(columns=["pixel_x", "pixel_y"]))
    with pytest.raises(ValueError, match="must be whole numbers"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots.assign(x=spots.new_x))
    with pytest.raises(ValueError, match="must have numbers"):
        nh.io.spatial_transcriptomics(image_array(), counts, spots.assign(pixel_x="left"))
    (tmp_path / "text.tsv").write_text("nothing\nhere\n")
    with pytest.raises(ValueError, match=r"text.tsv is not a table"):
        nh.io.spatial_transcriptomics(image_array(), counts, tmp_path / "text.tsv")
    with pytest.raises(FileNotFoundError, match="counts to be a file, found none"):
        nh.io.spatial_transcriptomics(image_array(), tmp_path / "none.tsv", spots)
    with pytest.raises(TypeError, match="`counts` must be a path, a data frame or an AnnData, found list"):
        nh.io.spatial_transcriptomics(image_array(), [], spots)


@pytest.mark.parametrize(("section", "n_spots"), [("C2", 187), ("C3", 180), ("C4", 184), ("C5", 181)])
def test_real_her2st(data_dir: Path, section: str, n_spots: int) -> None:
    sdata = nh.io.her2st(data_dir / "her2st", section)
    assert sdata["table"].n_obs == n_spots
    assert microns(sdata, section) == pytest.approx(0.69, abs=0.01)
    image = sdata[f"{section}_image"]
    assert len(image) == 5 and max(image["scale4"]["image"].shape) < 700


def test_real_spots_are_on_the_tissue(data_dir: Path) -> None:
    sdata = nh.io.her2st(data_dir / "her2st", "C2")
    small = sdata["C2_image"]["scale4"]["image"].values.mean(0)
    x, y = (sdata["table"].obsm["spatial"] / 16).astype(int).T
    assert np.median(small[y, x]) < np.median(small) - 25  # darker than the rest


def test_joined_sections_keep_their_scale(legacy):
    """``spatialdata.concatenate`` adds to the names of coordinate systems."""
    sections = {key: sd.deepcopy(one) for key, one in zip("AB", legacy, strict=True)}  # it changes what it is given
    joined = sd.concatenate(sections, concatenate_tables=True)
    sections = nh.data.section.locate_sections(joined)
    assert [section.geometry.microns_per_pixel for section in sections] == [2.0, 2.0]
