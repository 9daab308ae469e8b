from __future__ import annotations

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import EllipseCollection, PolyCollection
from PIL import Image
from shapely import box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, get_transformation, set_transformation

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse.data.expression import measured


def spots(ax):
    return next(c for c in ax.collections if isinstance(c, EllipseCollection | PolyCollection))


def colour_bars(ax):
    return ax.child_axes


def predicted_genes(sdata, n):
    table = sdata["table"]
    return list(table.var_names[table.var["nh2st"]][:n])


def test_one_row_per_gene(sdata):
    table = sdata["table"]
    genes = predicted_genes(sdata, 3)[::-1]
    axes = nh.pl.expression(sdata, genes, return_ax=True)
    assert axes.shape == (3, 3)
    for row, gene in zip(axes, genes, strict=True):
        r = table.var.loc[gene, "nh2st_pearson"]
        assert [ax.get_title() for ax in row] == ["H&E", f"{gene}  measured", f"{gene}  predicted  r = {r:.2f}"]
        at = table.var_names.get_loc(gene)
        np.testing.assert_allclose(spots(row[1]).get_array(), measured(table)[:, at], rtol=1e-5)
        np.testing.assert_allclose(spots(row[2]).get_array(), table.layers["nh2st"][:, at])
        assert len(spots(row[1]).get_offsets()) == len(spots(row[2]).get_offsets()) == table.n_obs
        assert not row[0].collections
        assert row[0].images[0].get_array().shape[2] == 3


def test_long_titles_break_before_the_score(sdata):
    gene = predicted_genes(sdata, 1)[0]
    sdata["table"].var["nh2st_ceiling"] = 0.9
    title = nh.pl.expression(sdata, gene, return_ax=True)[0, 2].title
    assert title.get_text() == f"{gene}  predicted\nr = 0.80 of 0.90"
    size = title.get_fontsize()
    long = "a_very_long_name_of_a_section_and_its_patient"
    sdata["table"].var_names = [f"{long}{i}" for i in range(sdata["table"].n_vars)]
    best = predicted_genes(sdata, 1)[0]
    assert nh.pl.expression(sdata, best, return_ax=True)[0, 2].title.get_fontsize() < size


def test_one_gene_may_be_a_string_and_nothing_is_returned_unless_asked(sdata):
    assert nh.pl.expression(sdata, predicted_genes(sdata, 1)[0]) is None
    assert len(plt.gcf().axes) == 3


def test_without_genes_the_best_are_drawn(sdata):
    axes = nh.pl.expression(sdata, return_ax=True)
    best = sdata["table"].var["nh2st_pearson"].nlargest(4).index
    assert [ax.get_title() for ax in axes[:, 1]] == [f"{gene}  measured" for gene in best]


def test_colour_limits_are_shared_and_robust(sdata):
    table = sdata["table"]
    (gene,) = predicted_genes(sdata, 1)
    at = table.var_names.get_loc(gene)
    table.layers["nh2st"][0, at] = 1000  # one odd spot does not decide the colours
    axes = nh.pl.expression(sdata, gene, return_ax=True)
    limits = spots(axes[0, 1]).get_clim()
    assert spots(axes[0, 2]).get_clim() == limits
    assert limits[1] < 20
    values = measured(table)[:, at]
    assert limits[0] <= np.quantile(values, 0.02) + 1e-6
    assert limits[1] >= np.quantile(values, 0.98) - 1e-6
    assert [len(colour_bars(ax)) for ax in axes[0]] == [0, 0, 1]
    assert colour_bars(axes[0, 2])[0].get_ylabel() == LOG_UNIT


def test_colour_limits_of_their_own(sdata):
    axes = nh.pl.expression(sdata, predicted_genes(sdata, 1), shared=False, return_ax=True)
    low, high = spots(axes[0, 1]).get_clim()
    low_predicted, high_predicted = spots(axes[0, 2]).get_clim()
    assert low < low_predicted < high_predicted < high  # predictions are shrunken
    assert [len(colour_bars(ax)) for ax in axes[0]] == [0, 1, 1]


def test_given_colour_limits_win(sdata):
    axes = nh.pl.expression(sdata, predicted_genes(sdata, 2), vmin=-1, vmax=3, cmap="magma", return_ax=True)
    assert {spots(ax).get_clim() for ax in axes[:, 1:].ravel()} == {(-1, 3)}
    assert spots(axes[0, 1]).get_cmap().name == "magma"


def test_difference_is_a_fourth_column(two):
    table = two["table"]
    gene = predicted_genes(two, 1)[0]
    axes = nh.pl.expression(two, gene, difference=True, return_ax=True)
    assert axes.shape == (2, 4)
    at = table.var_names.get_loc(gene)
    off = table.layers["nh2st"][:, at] - measured(table)[:, at]
    for i, row in enumerate(axes):
        own = (table.obs["region"] == f"section_{i}_spots").to_numpy()
        np.testing.assert_allclose(spots(row[3]).get_array(), off[own], rtol=1e-4, atol=1e-5)
        assert row[3].get_title().split() == [gene, "predicted", "−", "measured"]  # in one line or two
        low, high = spots(row[3]).get_clim()
        assert -low == high > 0  # white is no difference
    assert spots(axes[0, 3]).get_clim() == spots(axes[1, 3]).get_clim()
    assert nh.pl.expression(two, gene, return_ax=True).shape == (2, 3)
    table.uns["nh2st"]["unit"] = "another"
    with pytest.raises(ValueError, match=r"in the unit of the prediction \(another\) for a difference, found counts"):
        nh.pl.expression(two, gene, difference=True)


def test_a_constant_gene_can_be_drawn(sdata):
    table = sdata["table"]
    gene = predicted_genes(sdata, 1)[0]
    at = table.var_names.get_loc(gene)
    table.X = table.X.toarray()
    table.X[:, at] = 0
    table.layers["nh2st"][:, at] = 0
    axes = nh.pl.expression(sdata, gene, return_ax=True)
    assert spots(axes[0, 1]).get_clim() == (0, 1)


def test_spots_without_a_prediction_are_grey(sdata):
    sdata["table"].layers["nh2st"][:5] = np.nan
    axes = nh.pl.expression(sdata, predicted_genes(sdata, 1), return_ax=True)
    drawn = spots(axes[0, 2])
    drawn.update_scalarmappable()
    colours = drawn.get_facecolor()
    assert np.ptp(colours[:5, :3], axis=1).max() == 0
    assert np.ptp(colours[5:, :3], axis=1).min() > 0.1
    assert axes[0, 2].get_xlabel() == "grey: not predicted"
    assert axes[0, 1].get_xlabel() == ""


def test_several_sections(two):
    table = two["table"]
    genes = predicted_genes(two, 2)
    axes = nh.pl.expression(two, genes, return_ax=True)
    assert axes.shape == (4, 3)
    assert [ax.get_title() for ax in axes[:, 0]] == ["H&E  section_0", "H&E  section_1"] * 2
    assert [ax.get_title().split()[0] for ax in axes[:, 1]] == [genes[0], genes[0], genes[1], genes[1]]
    assert axes[2, 0] is axes[0, 0] and axes[3, 0] is axes[1, 0]  # the H&E of a section is drawn once
    assert len([ax for ax in axes[0, 0].figure.axes if ax.get_title().startswith("H&E")]) == 2
    assert [ax.get_ylabel() for ax in axes[:, 1]] == ["", "", "section_0", "section_1"]
    for i, section in enumerate(["section_0_spots", "section_1_spots"]):
        own = (table.obs["region"] == section).to_numpy()
        expected = table.layers["nh2st"][own, table.var_names.get_loc(genes[0])]
        np.testing.assert_allclose(spots(axes[i, 2]).get_array(), expected)
    clims = [spots(ax).get_clim() for ax in axes[:, 1]]
    assert clims[0] == clims[1] != clims[2] == clims[3]  # of a gene, over its sections

    axes = nh.pl.expression(two, genes, shapes_key="section_1_spots", return_ax=True)
    assert axes.shape == (2, 3)
    assert len(spots(axes[0, 1]).get_offsets()) == (table.obs["region"] == "section_1_spots").sum()


def test_rows_of_the_table_in_another_order(sdata):
    gene = predicted_genes(sdata, 1)[0]
    before = spots(nh.pl.expression(sdata, gene, return_ax=True)[0, 2])
    sdata.tables["table"] = sdata["table"][np.random.default_rng(0).permutation(sdata["table"].n_obs)].copy()
    after = spots(nh.pl.expression(sdata, gene, return_ax=True)[0, 2])

    def by_place(drawn):
        return dict(zip(map(tuple, np.round(drawn.get_offsets(), 3)), np.asarray(drawn.get_array()), strict=True))

    assert by_place(before) == by_place(after)


# --- place and size, in µm ---


def test_spots_are_drawn_in_microns_and_true_size(sdata):
    ax = nh.pl.expression(sdata, predicted_genes(sdata, 1), return_ax=True)[0, 1]
    np.testing.assert_allclose(spots(ax).get_offsets(), sdata["table"].obsm["spatial"], atol=1e-6)  # 1 µm per pixel
    np.testing.assert_allclose(spots(ax).get_widths(), 55)
    assert ax.get_aspect() == 1
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    x, y = sdata["table"].obsm["spatial"].T
    assert left < x.min() < x.max() < right
    assert top < y.min() < y.max() < bottom  # y runs down as in the image
    assert not ax.get_xticks().size
    assert not ax.get_yticks().size

    ax = nh.pl.expression(sdata, predicted_genes(sdata, 1), size=2, return_ax=True)[0, 1]
    np.testing.assert_allclose(spots(ax).get_widths(), 110)


def test_scale_bar_has_a_round_length(sdata):
    axes = nh.pl.expression(sdata, predicted_genes(sdata, 1), return_ax=True)
    (bar,) = axes[0, 0].lines
    (label,) = axes[0, 0].texts
    assert label.get_text() == "200 µm"
    np.testing.assert_allclose(np.ptp(bar.get_xdata()), 200)
    assert not axes[0, 1].lines
    axes[0, 0].figure.canvas.draw()
    panel, text = axes[0, 0].get_window_extent(), label.get_window_extent()
    assert panel.x0 < text.x0 < text.x1 < panel.x1
    assert panel.y0 < text.y0 < text.y1 < panel.y1


def test_scale_bar_lies_on_the_image(sdata):
    """Spots at the border of the image: beyond it the panel is white."""
    image = sdata["section_0_image"]["scale0"]["image"].values[:, 200:1000, 300:900]
    table = sdata["table"]
    places = table.obsm["spatial"] - [300, 200]
    inside = ((places > 0) & (places < [600, 800])).all(axis=1)
    adata = AnnData(table.X[inside], obs=table.obs[[]][inside], var=table.var[[]], obsm={"spatial": places[inside]})
    adata.layers["nh2st"] = measured(table)[inside]
    part = nh.io.from_anndata(adata, image.transpose(1, 2, 0), microns_per_pixel=1.0, spot_diameter=55)
    ax = nh.pl.expression(part, table.var_names[0], return_ax=True)[0, 0]
    (bar,), (label,) = ax.lines, ax.texts
    bottom, top = ax.get_ylim()
    assert ax.get_xlim()[0] < 0 and top < 0  # the panel is larger than the image
    y = bottom + (top - bottom) * bar.get_ydata()[0]
    assert 0 < bar.get_xdata().min() < bar.get_xdata().max() < 600 and 0 < y < 800
    assert 0 < label.xy[0] < 600


def test_scale_bar_avoids_the_spots(sdata):
    # all four corners in turn: spots fill the other three
    x, y = sdata["table"].obsm["spatial"].T
    for east in (False, True):
        for low in (False, True):
            empty = (x > 800 if east else x < 400) & (y > 800 if low else y < 400)
            part = SpatialData(
                images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": sdata["table"][~empty].copy()}
            )
            ax = nh.pl.expression(part, predicted_genes(sdata, 1), return_ax=True)[0, 0]
            assert (np.mean(ax.lines[0].get_xdata()) > 600) == east
            assert (ax.lines[0].get_ydata()[0] < 0.5) == low


@pytest.mark.parametrize("multiscale", [True, False])
def test_image_and_spots_stay_together(multiscale):
    # black squares on white where the spots are, in an image with an offset, and spots in another unit
    pixels = np.full((3, 2600, 2000), 255, dtype=np.uint8)
    y, x = (g.ravel() for g in np.meshgrid(np.arange(400, 2201, 300), np.arange(300, 1701, 280), indexing="ij"))
    for cx, cy in zip(x, y, strict=True):
        pixels[:, cy - 40 : cy + 40, cx - 40 : cx + 40] = [[[10]], [[10]], [[90]]]
    image = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        scale_factors=[2, 2] if multiscale else None,
        transformations={"cs": Affine([[2, 0, 100], [0, 2, 50], [0, 0, 1]], ("x", "y"), ("x", "y"))},
    )
    shapes = ShapesModel.parse(
        np.column_stack([x * 2 + 100, y * 2 + 50]) / 10, geometry=0, radius=8.0, transformations={"cs": Identity()}
    )
    set_transformation(shapes, Affine([[10, 0, 0], [0, 10, 0], [0, 0, 1]], ("x", "y"), ("x", "y")), "cs")
    table = AnnData(
        np.arange(len(x) * 3, dtype=np.float32).reshape(-1, 3),
        obs=pd.DataFrame(
            {"region": pd.Categorical(["s"] * len(x)), "id": np.arange(len(x))}, index=[f"b{i}" for i in range(len(x))]
        ),
        var=pd.DataFrame(index=["A", "B", "C"]),
    )
    table.layers["nh2st"] = np.ones(table.shape, dtype=np.float32)
    table = TableModel.parse(table, region="s", region_key="region", instance_key="id")
    sdata = SpatialData(images={"i": image}, shapes={"s": shapes}, tables={"table": table})
    he, ax, _ = nh.pl.expression(sdata, "B", microns_per_pixel=0.5, return_ax=True)[0]
    np.testing.assert_allclose(spots(ax).get_offsets(), np.column_stack([x, y]) * 0.5)
    np.testing.assert_allclose(spots(ax).get_widths(), 2 * 8 * 10 / 2 * 0.5)

    shown = he.images[0]
    left, right, bottom, top = shown.get_extent()
    picture = np.asarray(shown.get_array())
    assert max(picture.shape[:2]) < 2000  # reduced, with or without a pyramid
    columns = (spots(ax).get_offsets()[:, 0] - left) / (right - left) * picture.shape[1]
    rows = (spots(ax).get_offsets()[:, 1] - top) / (bottom - top) * picture.shape[0]
    assert (picture[rows.astype(int), columns.astype(int)].max(axis=1) < 120).all()
    side = 20 / (right - left) * picture.shape[1]  # squares are 40 µm wide
    assert (picture[rows.astype(int), (columns + 1.5 * side).astype(int)] == 255).all()
    # as many dark pixels left as right of the centre: no shift by more than a pixel
    first = picture[int(rows[0]), :, 0]
    dark = np.flatnonzero(first[: int(columns[0] + 2 * side)] < 128)
    assert abs((dark.mean() + 0.5) - columns[0]) < 1


def test_squares_are_drawn_as_squares(sdata):
    old = sdata["section_0_spots"]
    squares = gpd.GeoDataFrame(
        geometry=[box(p.x - 30, p.y - 30, p.x + 30, p.y + 30) for p in old.geometry], index=old.index
    )
    squares = ShapesModel.parse(squares, transformations=get_transformation(old, get_all=True))
    del sdata.shapes["section_0_spots"]
    sdata.shapes["section_0_spots"] = squares
    ax = nh.pl.expression(sdata, predicted_genes(sdata, 1), size=0.5, return_ax=True)[0, 2]
    paths = spots(ax).get_paths()
    assert len(paths) == len(old)
    assert {tuple(np.round(np.ptp(path.vertices, axis=0), 6)) for path in paths} == {(30.0, 30.0)}


# --- units and tables ---


def test_logarithms_are_measured_as_they_are(sdata):
    table = sdata["table"]
    table.layers["log"] = measured(table) * 0.5
    gene = predicted_genes(sdata, 1)[0]
    axes = nh.pl.expression(sdata, gene, layer="log", return_ax=True)
    expected = table.layers["log"][:, table.var_names.get_loc(gene)]
    np.testing.assert_allclose(spots(axes[0, 1]).get_array(), expected)


def test_a_prediction_in_another_unit_has_its_own_scale(sdata):
    sdata["table"].uns["nh2st"] = {"unit": "log1p(1e4 of the panel), smoothed"}
    axes = nh.pl.expression(sdata, predicted_genes(sdata, 1), return_ax=True)
    assert [colour_bars(ax)[0].get_ylabel() for ax in axes[0, 1:]] == [LOG_UNIT, "log1p(1e4 of the panel), smoothed"]
    assert spots(axes[0, 1]).get_clim() != spots(axes[0, 2]).get_clim()


def test_a_table_that_has_predictions_only(sdata):
    table = sdata["table"]
    known = table.var["nh2st"].to_numpy()
    new = AnnData(
        table.layers["nh2st"][:, known],
        obs=table.obs[["region", "spot_id"]].copy(),
        var=table.var.loc[known, ["nh2st_pearson"]],
        uns={"nh2st": {"unit": LOG_UNIT}},
    )
    sdata.tables["predicted"] = TableModel.parse(
        new, region="section_0_spots", region_key="region", instance_key="spot_id"
    )
    gene = predicted_genes(sdata, 1)[0]
    with pytest.raises(KeyError, match=r"Found several tables with predictions under 'nh2st'.*pass table_key="):
        nh.pl.expression(sdata, gene)
    axes = nh.pl.expression(sdata, gene, table_key="predicted", return_ax=True)
    assert [ax.get_title() for ax in axes[0]] == ["H&E", f"{gene}  predicted  r = 0.80"]
    np.testing.assert_allclose(spots(axes[0, 1]).get_array(), new[:, gene].X.ravel())


def test_another_key_without_scores(sdata):
    table = sdata["table"]
    table.layers["mine"] = table.layers["nh2st"]
    del table.var["nh2st_pearson"]
    gene = predicted_genes(sdata, 1)[0]
    axes = nh.pl.expression(sdata, gene, key="mine", return_ax=True)
    assert axes[0, 2].get_title() == f"{gene}  predicted"


# --- what goes wrong ---


def test_no_prediction(sdata):
    with pytest.raises(KeyError, match=r"key='other'.*there are some under \['nh2st'\]"):
        nh.pl.expression(sdata, key="other")
    del sdata["table"].layers["nh2st"]
    with pytest.raises(KeyError, match=r"nh\.tl\.predict_expression\(sdata\)"):
        nh.pl.expression(sdata, "FAT01")
    assert not plt.get_fignums()


def test_wrong_genes(sdata):
    unpredicted = sdata["table"].var_names[~sdata["table"].var["nh2st"]][0]
    good = predicted_genes(sdata, 1)[0]
    with pytest.raises(KeyError, match=rf"\['{good.lower()}'\] are not in the table.*did you mean \['{good}'"):
        nh.pl.expression(sdata, [good, good.lower()])
    with pytest.raises(KeyError, match=r"\['qqqq'\] are not in the table\. It has 300 genes, e\.g\."):
        nh.pl.expression(sdata, "qqqq")
    with pytest.raises(ValueError, match=rf"\['{unpredicted}'\] are measured but not predicted.*40 of 300 genes"):
        nh.pl.expression(sdata, [good, unpredicted])
    with pytest.raises(ValueError, match="empty list"):
        nh.pl.expression(sdata, [])
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"table_key": "tables"}, KeyError, r"table_key='tables' is not there. Available tables: \['table'\]"),
        ({"layer": "counts"}, KeyError, "layer='counts' is not there"),
        ({"shapes_key": "C2"}, KeyError, r"shapes_key='C2' is not there.*section_0_spots"),
        ({"image_key": "tif"}, KeyError, r"image_key='tif' is not there.*section_0_image"),
        ({"size": 0}, ValueError, "size to be a number above 0"),
        ({"cmap": "rainbows"}, ValueError, "rainbows"),
    ],
)
def test_wrong_arguments(sdata, arguments, error, match):
    with pytest.raises(error, match=match):
        nh.pl.expression(sdata, **arguments)
    assert not plt.get_fignums()


def test_not_a_spatialdata_object(sdata):
    with pytest.raises(TypeError, match=r"Expected a SpatialData object, found AnnData.*nh\.io\.from_anndata"):
        nh.pl.expression(sdata["table"], "FAT01")


def test_save_writes_a_file_and_the_object_is_unchanged(sdata, state, tmp_path, monkeypatch):
    before = state(sdata)
    nh.pl.expression(sdata, predicted_genes(sdata, 1), save=tmp_path / "figures" / "map", dpi=50)
    nh.pl.expression(sdata, predicted_genes(sdata, 1), save=str(tmp_path / "map.pdf"))
    nh.pl.expression(sdata, predicted_genes(sdata, 1), save=tmp_path / "map.png")
    monkeypatch.setitem(plt.rcParams, "savefig.dpi", 40)
    nh.pl.expression(sdata, predicted_genes(sdata, 1), save=tmp_path / "small.png")
    dpi = []
    for name in ("figures/map.png", "map.png", "small.png"):
        with Image.open(tmp_path / name) as picture:
            dpi.append(round(picture.info["dpi"][0]))
    assert dpi == [50, 200, 40]  # as asked for, as is sharp in print, as matplotlib is set
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")
    assert state(sdata) == before


def test_panels_do_not_overlap(two):
    axes = nh.pl.expression(two, predicted_genes(two, 2), return_ax=True)
    fig = axes[0, 0].figure
    fig.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in set(axes.ravel())]  # with titles and colour bars
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            width = min(one.x1, other.x1) - max(one.x0, other.x0)
            height = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert width <= 0.5 or height <= 0.5


def test_real_section(data_dir):
    sdata = nh.io.her2st(data_dir / "her2st", "C2")
    table = sdata["table"]
    table.layers["nh2st"] = np.full(table.shape, np.nan, dtype=np.float32)
    at = table.var_names.get_indexer(["ERBB2", "IGKC"])
    table.layers["nh2st"][:, at] = measured(table)[:, at].mean(axis=0)
    axes = nh.pl.expression(sdata, ["ERBB2", "IGKC"], return_ax=True)
    assert axes.shape == (2, 3)
    np.testing.assert_allclose(spots(axes[0, 1]).get_array(), measured(table)[:, at[0]], rtol=1e-4)
    np.testing.assert_allclose(spots(axes[0, 1]).get_widths(), 100)
    assert axes[0, 0].texts[0].get_text() == "1 mm"


def test_a_piece_of_a_few_spots_is_drawn(sdata):
    sdata.tables["table"] = sdata["table"][[10, 11, 12, 13]].copy()
    axes = nh.pl.expression(sdata, predicted_genes(sdata, 1), return_ax=True)
    assert len(spots(axes[0, 2]).get_array()) == 4
    assert nh.pl.slide_map(sdata, predicted_genes(sdata, 1), return_ax=True) is not None
    assert nh.explore(sdata).gene in predicted_genes(sdata, 1)
