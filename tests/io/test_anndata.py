from __future__ import annotations

import logging
import os
import struct
import zlib
from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import spatialdata as sd
import tifffile
from scipy import sparse
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh

PX = 50.0  # between neighbouring spots: 2 µm per pixel at Visium's 100 µm


def image_array(height: int = 600, width: int = 800) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y % 256, x % 256, (y // 256) * 16 + x // 256], axis=-1).astype(np.uint8)


@pytest.fixture
def adata() -> ad.AnnData:
    """A hexagonal grid of 12 x 11 spots that fills the image of :func:`image_array`."""
    row, col = (a.ravel() for a in np.mgrid[:11, :12])
    xy = np.column_stack([60 + PX * (col + 0.5 * (row % 2)), 40 + PX * np.sqrt(0.75) * row])
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(1, (len(row), 5)).astype(np.int32)))
    adata.obs_names = [f"AAC{i}-1" for i in range(len(row))]
    adata.var_names = [f"Gene{i}" for i in range(5)]
    adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.obs["cluster"] = pd.Categorical(["a", "b"] * 66)
    adata.var["panel"] = True
    adata.layers["log"] = adata.X.astype(np.float32).log1p()
    adata.obsm["spatial"] = xy
    adata.obsm["X_pca"] = rng.normal(size=(len(row), 3))
    adata.uns["experiment"] = {"batch": 3}
    return adata


def microns(sdata: sd.SpatialData) -> float:
    return float(get_transformation(sdata["section_image"], "section_microns").to_affine_matrix(("x",), ("x",))[0, 0])


def pixels(sdata: sd.SpatialData, level: int = 0) -> np.ndarray:
    return sdata["section_image"][f"scale{level}"]["image"].values.transpose(1, 2, 0)


def test_everything_is_kept_and_nothing_is_changed(adata: ad.AnnData, tmp_path: Path) -> None:
    before = adata.copy()
    sdata = nh.io.from_anndata(adata, image_array(), microns_per_pixel=2, spot_diameter=55)
    table = sdata["table"]
    table.X.data[:] = 7
    table.obsm["spatial"][:] = 0
    table.uns["experiment"]["batch"] = 9

    assert list(adata.obs) == list(before.obs) and list(adata.uns) == list(before.uns)
    assert adata.uns["experiment"] == {"batch": 3}
    assert (adata.X != before.X).nnz == 0
    np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])

    assert list(table.obs) == ["array_row", "array_col", "cluster", "region", "spot_id"]
    assert table.var["panel"].all() and "log" in table.layers and "X_pca" in table.obsm
    assert table.X.dtype == np.int32
    assert (sdata["section_spots"].radius == 55 / 2 / 2).all()
    spots = sdata["section_spots"].geometry
    np.testing.assert_array_equal(np.column_stack([spots.x, spots.y]), before.obsm["spatial"])
    assert set(sdata.coordinate_systems) == {"section", "section_microns"}
    assert microns(sdata) == 2
    sdata.write(tmp_path / "a.zarr")
    assert microns(sd.read_zarr(tmp_path / "a.zarr")) == 2


def test_pitch_instead_of_resolution(adata: ad.AnnData) -> None:
    sdata = nh.io.from_anndata(adata, image_array(), spot_pitch=100)
    assert microns(sdata) == pytest.approx(2)
    assert sdata["section_spots"].radius[0] == pytest.approx(55 / 4)
    legacy = nh.io.from_anndata(adata, image_array(), spot_pitch=200)
    assert legacy["section_spots"].radius[0] * microns(legacy) == pytest.approx(50)
    both = nh.io.from_anndata(adata, image_array(), spot_pitch=100, microns_per_pixel=2.02)
    assert microns(both) == 2.02
    with pytest.raises(ValueError, match=r"contradict each other.*makes 2 µm per pixel"):
        nh.io.from_anndata(adata, image_array(), spot_pitch=100, microns_per_pixel=0.5)


def test_jitter_does_not_bias_the_pitch() -> None:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.ones((400, 1), np.float32))
    grid = np.column_stack([a.ravel() for a in np.mgrid[1:21, 1:21]]) * 30.0
    adata.obsm["spatial"] = grid + rng.normal(0, 1.5, grid.shape)
    sdata = nh.io.from_anndata(adata, image_array(660, 660), spot_pitch=200)
    assert microns(sdata) == pytest.approx(200 / 30, rel=0.01)


def test_what_must_be_known(adata: ad.AnnData) -> None:
    with pytest.raises(
        ValueError,
        match=r"`microns_per_pixel=`.*`spot_pitch=`.*200 for legacy ST, 100 for Visium.*50 px apart.*and 2 for",
    ):
        nh.io.from_anndata(adata, image_array())
    with pytest.raises(ValueError, match=r"`spot_diameter=` in µm: 100 for legacy ST, 55 for Visium.*are 100 µm apart"):
        nh.io.from_anndata(adata, image_array(), microns_per_pixel=2)
    with pytest.raises(ValueError, match="`spot_diameter=` in µm"):
        nh.io.from_anndata(adata, image_array(), spot_pitch=150)
    with pytest.raises(ValueError, match=r"Expected microns_per_pixel to be a number above 0, found nan"):
        nh.io.from_anndata(adata, image_array(), microns_per_pixel=np.nan, spot_diameter=55)
    with pytest.raises(ValueError, match=r"Spots of 55 µm would overlap: their centres are 12.5 µm apart"):
        nh.io.from_anndata(adata, image_array(), microns_per_pixel=0.25, spot_diameter=55)


def test_downscaled_image(adata: ad.AnnData) -> None:
    small = image_array(150, 200)
    with pytest.raises(ValueError, match=r"of 132 spots are outside the image, which is 200 x 150 px.*at most 0\.\d+"):
        nh.io.from_anndata(adata, small, spot_pitch=100)
    adata.uns["spatial"] = {"S1": {"scalefactors": {"tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.08}}}
    with pytest.raises(ValueError, match=r"downscaled copy: pass `image_scale=0.25` \(from `uns\['spatial'\]`\)"):
        nh.io.from_anndata(adata, small, spot_pitch=100)

    sdata = nh.io.from_anndata(adata, small, spot_pitch=100, image_scale=0.25)
    assert microns(sdata) == pytest.approx(8)
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], adata.obsm["spatial"] / 4)
    np.testing.assert_allclose(sdata["section_spots"].geometry.x, adata.obsm["spatial"][:, 0] / 4)
    np.testing.assert_allclose(sdata["table"].obsm["spatial_original"], adata.obsm["spatial"])


def test_coordinates_of_a_smaller_image_are_noticed(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="nh2st_scverse"):
        nh.io.from_anndata(adata, image_array(), spot_pitch=100)
        assert "upper left corner" not in caplog.text
        nh.io.from_anndata(adata, np.full((2400, 3200, 3), 200, np.uint8), spot_pitch=100)
    assert "upper left corner" in caplog.text


def test_swapped_x_and_y(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1]
    with pytest.raises(ValueError, match=r"With x and y swapped all spots are inside.*\['spatial'\]\[:, ::-1\]"):
        nh.io.from_anndata(adata, image_array(), spot_pitch=100)


def test_a_few_spots_outside(adata: ad.AnnData) -> None:
    adata.obsm["spatial"][0] = -70
    with pytest.raises(ValueError, match=r"1 of 132 spots are outside.*or drop these spots"):
        nh.io.from_anndata(adata, image_array(), spot_pitch=100)


def test_other_spatial_key(adata: ad.AnnData) -> None:
    adata.obsm["pixels"] = adata.obsm["spatial"].copy()
    adata.obsm["spatial"] = adata.obsm["spatial"] * 2
    table = nh.io.from_anndata(adata, image_array(), spot_pitch=100, spatial_key="pixels")["table"]
    np.testing.assert_array_equal(table.obsm["spatial"], adata.obsm["pixels"])
    np.testing.assert_array_equal(table.obsm["spatial_original"], adata.obsm["spatial"])
    with pytest.raises(KeyError, match=r"obsm\['xy'\] is missing.*spatial, X_pca, pixels.*spatial_key="):
        nh.io.from_anndata(adata, image_array(), spot_pitch=100, spatial_key="xy")
    with pytest.raises(ValueError, match=r"of shape \(n_spots, 2\), found float64 \(132, 3\)"):
        nh.io.from_anndata(adata, image_array(), spot_pitch=100, spatial_key="X_pca")


def test_duplicated_names(adata: ad.AnnData) -> None:
    genes = adata.copy()
    genes.var_names = ["A", "B", "A", "C", "D"]
    with pytest.raises(
        ValueError, match=r"unique gene names, found 1 .*'A'.*Mend with adata.var_names_make_unique\(\)"
    ):
        nh.io.from_anndata(genes, image_array(), spot_pitch=100)
    adata.obs_names = ["one", "one", *adata.obs_names[2:]]
    with pytest.raises(
        ValueError, match=r"unique spot names, found 1 .*'one'.*Mend with adata.obs_names_make_unique\(\)"
    ):
        nh.io.from_anndata(adata, image_array(), spot_pitch=100)


def test_several_sections_in_one_anndata(adata: ad.AnnData) -> None:
    both = ad.concat({"a": adata, "b": adata}, index_unique="-", label="library_id")
    with pytest.raises(ValueError, match="more than one section in `adata`"):
        nh.io.from_anndata(both, image_array(), spot_pitch=100)


def test_obs_columns_are_not_written_over(adata: ad.AnnData) -> None:
    adata.obs["Region"] = "cortex"
    with pytest.raises(ValueError, match=r"columns Region;.*'Region_original'"):
        nh.io.from_anndata(adata, image_array(), spot_pitch=100)
    adata.obs = adata.obs.rename(columns={"Region": "Region_original"})
    first = nh.io.from_anndata(adata, image_array(), spot_pitch=100, section="first")
    again = nh.io.from_anndata(first["table"], image_array(), spot_pitch=100, section="again")  # linked anew
    assert set(again["table"].obs["region"]) == {"again_spots"}
    assert set(first["table"].obs["region"]) == {"first_spots"}


def test_views_and_backed(adata: ad.AnnData, tmp_path: Path) -> None:
    view = adata[10:40]
    assert nh.io.from_anndata(view, image_array(), spot_pitch=100)["table"].n_obs == 30
    assert view.is_view
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    table = nh.io.from_anndata(backed, image_array(), spot_pitch=100)["table"]
    assert (table.X != adata.X).nnz == 0 and not table.isbacked
    backed.file.close()


def read(adata: ad.AnnData, image: object) -> np.ndarray:
    return pixels(nh.io.from_anndata(adata, image, spot_pitch=100))


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_image_files(adata: ad.AnnData, tmp_path: Path, suffix: str) -> None:
    image = image_array()
    image[..., 1:] = 100  # smooth, for jpg
    image[..., 0] = np.linspace(0, 255, 600).astype(np.uint8)[:, None]
    PIL.Image.fromarray(image).save(tmp_path / f"a.{suffix}")
    for path in (tmp_path / f"a.{suffix}", str(tmp_path / f"a.{suffix}")):
        np.testing.assert_allclose(read(adata, path), image.astype(int), atol=6 if suffix == "jpg" else 0)


def test_tif_with_channels_as_pages(adata: ad.AnnData, tmp_path: Path) -> None:
    planes = image_array().transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", planes, metadata={"axes": "CYX"}, photometric="minisblack")
    np.testing.assert_array_equal(read(adata, tmp_path / "a.tif"), image_array())


@pytest.mark.parametrize("planes", [True, False])
def test_16_bits(adata: ad.AnnData, tmp_path: Path, planes: bool) -> None:
    image = image_array().astype(np.uint16)
    if planes:
        tifffile.imwrite(
            tmp_path / "b.tif", image.transpose(2, 0, 1), metadata={"axes": "CYX"}, photometric="minisblack"
        )
    else:
        tifffile.imwrite(tmp_path / "b.tif", image, photometric="rgb")
    with pytest.raises(ValueError, match=r"b.tif is uint16, 16 bits per channel: expected 8.*astype"):
        read(adata, tmp_path / "b.tif")


def test_16_bit_png(adata: ad.AnnData, tmp_path: Path) -> None:
    # Pillow reads such files but does not write them
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image_array())
    header = struct.pack(">IIBBBBB", 800, 600, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(ValueError, match="has 16 bits per channel"):
        read(adata, tmp_path / "a.png")


def test_image_arrays(adata: ad.AnnData) -> None:
    image = image_array()
    np.testing.assert_array_equal(read(adata, image), image)
    np.testing.assert_array_equal(read(adata, da.from_array(image, chunks=(100, 300, 1))), image)
    np.testing.assert_array_equal(read(adata, image / 255), image)
    np.testing.assert_array_equal(read(adata, da.from_array((image / 255).astype(np.float32), chunks=200)), image)


def test_opacity_is_laid_on_white(adata: ad.AnnData, tmp_path: Path) -> None:
    image = np.dstack([image_array(), np.full((600, 800), 255, np.uint8)])
    image[100:200, :, 3] = 0
    image[200:300, :, 3] = 51  # a fifth
    expected = image_array().astype(float)
    expected[100:200] = 255
    expected[200:300] = expected[200:300] * 0.2 + 255 * 0.8
    PIL.Image.fromarray(image).save(tmp_path / "a.png")
    for given in (image, image / 255, da.from_array(image, chunks=256), tmp_path / "a.png"):
        result = read(adata, given)
        assert result.shape == (600, 800, 3)
        np.testing.assert_allclose(result, expected, atol=1)


def test_images_that_cannot_be_used(adata: ad.AnnData, tmp_path: Path) -> None:
    image = image_array()
    for given, match in (
        (image[..., 0], r"greyscale \(shape \(600, 800\)\)"),
        (image[..., :1], "greyscale"),
        (image.transpose(2, 0, 1), r"channels are first: pass `np.moveaxis\(image, 0, -1\)`"),
        (image.astype(np.uint16) * 257, r"uint16: expected 8 bits.*astype\(\"uint8\"\)"),
        (image.astype(float), r"values from 0 to 255: expected uint8.*image.round\(\)"),
        (np.full((600, 800, 3), np.nan), "values from nan"),
        (np.zeros((0, 800, 3), np.uint8), "is empty"),
    ):
        with pytest.raises(ValueError, match=match):
            read(adata, given)
    PIL.Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    PIL.Image.fromarray(image[..., 0].astype(np.uint16)).save(tmp_path / "grey16.png")
    PIL.Image.fromarray(image[..., 0]).save(tmp_path / "grey.tif")
    (tmp_path / "text.jpg").write_text("no image")
    for name, match in (
        ("grey.png", "not an RGB image"),
        ("grey16.png", "not an RGB image"),
        ("grey.tif", "grey.tif is greyscale"),
        ("text.jpg", "not an image that can be read .*expected svs, .*jpg or png"),
    ):
        with pytest.raises(ValueError, match=match):
            read(adata, tmp_path / name)
    with pytest.raises(
        FileNotFoundError, match=r"image to be a file, found none at .*none.png'. In that folder: grey.png"
    ):
        read(adata, tmp_path / "none.png")
    with pytest.raises(TypeError, match="image to be a path or an array"):
        read(adata, None)


def test_pyramid(adata: ad.AnnData) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2101, 3003, 3), dtype=np.uint8)
    adata.obsm["spatial"] *= 3.4
    sdata = nh.io.from_anndata(adata, image, spot_pitch=100)
    tree = sdata["section_image"]
    assert [level["image"].shape[1:] for level in tree.values()] == [(2101, 3003), (1050, 1501), (525, 750), (262, 375)]
    expected = image[:2100, :3000].reshape(525, 4, 750, 4, 3).mean((1, 3))
    np.testing.assert_allclose(pixels(sdata, 2), expected, atol=1)
    assert abs(pixels(sdata, 3).mean() - image.mean()) < 0.2  # levels do not get darker
    for level in tree.values():
        assert max(level["image"].data.chunksize) <= 1024


def test_a_file_is_decoded_once_and_late(adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nh2st_scverse.io import _image

    decoded: list[str] = []
    convert = PIL.Image.Image.convert
    monkeypatch.setattr(
        PIL.Image.Image,
        "convert",
        lambda self, *args, **kwargs: (decoded.append("x"), convert(self, *args, **kwargs))[1],
    )
    adata.obsm["spatial"] *= 2
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        PIL.Image.fromarray(image_array(1300, 1600)).save(path, compress_level=0)
    _image._decoded.cache_clear()
    images = [nh.io.from_anndata(adata, path, spot_pitch=100)["section_image"] for path in paths]
    assert decoded == []
    full = images[0]["scale0"]["image"]
    for start in (0, 500, 900):
        crop = full[:, start : start + 300, 900:1200].values  # over several chunks
        np.testing.assert_array_equal(crop.transpose(1, 2, 0), image_array(1300, 1600)[start : start + 300, 900:1200])
    images[0]["scale1"]["image"].values  # noqa: B018
    assert len(decoded) == 1
    images[1]["scale0"]["image"].values  # noqa: B018
    images[2]["scale0"]["image"].values  # noqa: B018
    assert len(decoded) == 3
    assert _image._decoded.cache_info().currsize == 2  # memory is bounded


def test_changed_files_are_noticed(adata: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(image_array()).save(path)
    first = nh.io.from_anndata(adata, path, spot_pitch=100)
    np.testing.assert_array_equal(pixels(first), image_array())
    PIL.Image.fromarray(255 - image_array()).save(path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(read(adata, path), 255 - image_array())
    path.unlink()
    from nh2st_scverse.io import _image

    _image._decoded.cache_clear()
    with pytest.raises(OSError, match="changed or gone since it was read"):
        pixels(first)


def test_pillows_limit_is_lifted_and_put_back(
    adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PIL.Image.fromarray(image_array()).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PIL.Image.DecompressionBombError):
        PIL.Image.open(tmp_path / "a.png")
    np.testing.assert_array_equal(read(adata, tmp_path / "a.png"), image_array())
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000


def test_plots(adata: ad.AnnData) -> None:
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401

    sdata = nh.io.from_anndata(adata, image_array(), spot_pitch=100, section="S")
    for system, width in (("S", 800), ("S_microns", 1600)):
        _, ax = plt.subplots()
        sdata.pl.render_images("S_image").pl.render_shapes("S_spots", color="Gene1").pl.show(
            coordinate_systems=system, ax=ax
        )
        assert abs(ax.get_xlim()[1] - width) < 0.05 * width


@pytest.mark.parametrize("section", ["rep01", "rep02", "rep04", "rep09"])
def test_real_mob(data_dir: Path, section: str) -> None:
    path = data_dir / "mob" / f"MOB_{section}"
    adata = ad.read_h5ad(path.with_suffix(".h5ad"))
    true = 200 / adata.uns["px_per_200um"]
    derived = nh.io.from_anndata(adata, path.with_suffix(".jpg"), spot_pitch=200)
    assert microns(derived) == pytest.approx(true, rel=0.01)
    sdata = nh.io.from_anndata(adata, path.with_suffix(".jpg"), microns_per_pixel=true, spot_diameter=100)
    assert sdata["section_spots"].radius[0] == pytest.approx(adata.uns["px_per_200um"] / 4)
    small = pixels(sdata, 2).mean(2)
    x, y = (adata.obsm["spatial"] / 4).astype(int).T
    assert np.median(small[y, x]) < np.median(small) - 25


def test_real_colon(data_dir: Path) -> None:
    adata = ad.read_h5ad(data_dir / "colon" / "colon_d0.h5ad")
    sdata = nh.io.from_anndata(adata, data_dir / "colon" / "colon_d0.jpg", spot_pitch=100)
    assert microns(sdata) == pytest.approx(100 / 103, rel=0.01)
    assert sdata["table"].shape == (2604, 4338)
    small = pixels(sdata, 4).mean(2)
    x, y = (adata.obsm["spatial"] / 16).astype(int).T
    assert np.median(small[y, x]) < np.median(small) - 25
