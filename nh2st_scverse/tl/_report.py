"""``tl.report``: one page that says what was predicted in an object, and how far to trust it."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure
from spatialdata import SpatialData

from nh2st_scverse import __version__, pl
from nh2st_scverse._constants import KEY, TRUSTED
from nh2st_scverse._docs import documented
from nh2st_scverse._logging import quiet
from nh2st_scverse._threads import threads
from nh2st_scverse._validators import as_path
from nh2st_scverse.pl._clusters import cluster_colours, draw_legend
from nh2st_scverse.pl._figure import (
    NOT_KNOWN,
    draw_image,
    draw_scale_bar,
    draw_spots,
    pictures,
    section_title,
    tissue_panels,
)
from nh2st_scverse.pp import check
from nh2st_scverse.prediction import HERE, Prediction, find_prediction, read
from nh2st_scverse.tl._biology import leiden
from nh2st_scverse.tl._evaluate import seen_in_training

N_GENES = 6  # that are drawn
FEWEST_SPOTS = 30  # that are clustered
RESOLUTION = 0.5
NOT_HELD_OUT = (
    "Whether the model of this tool was trained on this tissue is not known here; if it was, these scores are too high."
)
DPI = 110
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 2px 10px 2px 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums } img { max-width: 100%; height: auto }
.warning { background: #fff3cd; color: #664d03; padding: .5rem .8rem } details { margin: .6rem 0 }
pre { font-size: 12px; white-space: pre-wrap; background: #f6f6f6; padding: .6rem }
"""


@documented()
def report(sdata: SpatialData, path: str | Path, *, key: str = KEY, table_key: str | None = None) -> Path:
    """Write one self-contained HTML page about a prediction: for a colleague, or for the record.

    It holds the check of the object, which genes to trust, maps of the best ones, clusters of the predicted panel,
    uncertainty and novelty where they are known, sentences for a methods section, and where the prediction comes from.

    Parameters
    ----------
    sdata
        Object with a prediction from :func:`predict_expression` or :func:`cross_fit`. Nothing is written to it.
    path
        File to write, ``.html``. One that is there is replaced.
    $prediction

    Returns
    -------
    The path. Pictures are inside the page. Without an image under the spots the maps show the spots alone.

    Raises
    ------
    KeyError
        No such prediction.
    ValueError
        A path that is no HTML file.
    FileNotFoundError
        No folder to write to.

    See Also
    --------
    evaluate : scores against measured expression, which the page then shows, too.

    Examples
    --------
    >>> import tempfile
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1500)
    >>> nh.tl.predict_expression(sdata, n_genes=20, max_epochs=2, progress=False)
    >>> nh.tl.report(sdata, tempfile.mkdtemp() + "/section.html").name
    'section.html'
    """
    path = as_path(path, argument="path")
    if not path.name.lower().endswith((".html", ".htm")):
        raise ValueError(f"Expected path= to be an HTML file, found {path.name!r}: give report.html, for example.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Expected a folder to write {path.name} to, found none at {path.parent}: make it first."
        )
    table_key = find_prediction(sdata, key, table_key)
    prediction = read(sdata.tables[table_key], key)
    was_interactive = plt.isinteractive()
    plt.ioff()  # figures go into the page, not into the notebook
    try:
        text = "\n".join(_page(sdata, table_key, key, prediction))
    finally:
        if was_interactive:
            plt.ion()
    new = path.with_name(f".{path.name}")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
    return path


def _page(sdata: SpatialData, table_key: str, key: str, prediction: Prediction) -> Iterator[str]:
    table = sdata.tables[table_key]
    regions = pd.unique(table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str))
    title = f"Predicted expression of {', '.join(regions)}"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    yield f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
    seen = seen_in_training(sdata, table_key, key, prediction)
    yield from (f"<p>{line}</p>" for line in _summary(table, prediction, *seen))
    yield "<h2>Which genes to trust</h2>"
    if np.isfinite(prediction.score).any():
        yield _picture(pl.gene_scores, sdata, key=key, table_key=table_key)
    yield f"<details><summary>All {len(prediction.genes)} genes</summary>{_as_html(_scores(prediction))}</details>"
    yield "<h2>Maps of the best genes</h2>"
    best = [str(gene) for gene in _scores(prediction).index[:N_GENES]]
    has_image = bool(sdata.images)
    yield (
        _picture(pl.slide_map, sdata, best, key=key, table_key=table_key)
        if has_image
        else _spots(table, best, prediction.of(best))
    )
    yield "<h2>Clusters of the predicted genes</h2>"
    if prediction.cross_fitted and len(regions) > 1:
        yield "<p>Each section was predicted by other models: a cluster may be of one section and not of a tissue.</p>"
    yield _clusters(sdata, table_key, prediction, has_image)
    if prediction.std is not None:
        how = "Where the third map is dark, the second is not to be trusted."
        how = how if has_image else f"Standard deviation of each predicted value, {prediction.unit}."
        yield f"<h2>Uncertainty</h2><p>{how}</p>"
        yield (
            _picture(pl.uncertainty, sdata, best[:2], key=key, table_key=table_key)
            if has_image
            else _spots(table, best[:2], prediction.std[:, prediction.at(best[:2])], cmap="plasma_r")
        )
    if prediction.novelty is not None and np.isfinite(prediction.novelty).any():
        yield f"<h2>Novelty</h2><p>{_novelty(prediction.novelty)}</p>"
    if has_image:
        yield "<h2>Check of the object</h2>"
        with quiet():
            yield check(sdata, table_key=table_key)._repr_html_()
    yield f"<h2>For a methods section</h2><p>{_methods(prediction)}</p>"
    yield "<h2>Where it comes from</h2><details><summary>Settings, training sections and versions</summary><pre>"
    flat = {name: value for name, value in prediction.about.items() if name not in ("json", "written")}
    known = {name: value for name, value in prediction.described.items() if name != "genes"}
    yield html.escape(json.dumps(flat | known, indent=1, default=str)) + "</pre></details></body></html>"


def _summary(table: AnnData, prediction: Prediction, named: list[str], known: list[str]) -> Iterator[str]:
    """What a reader must know first; `named` and `known` are sections that the model was trained on."""
    n_predicted = int(np.isfinite(prediction.values).all(axis=1).sum())
    how = "each by a model that never saw it" if prediction.cross_fitted else "by a model trained on other sections"
    if known or named:
        how = "by a model that was trained on " + ("them" if known else "sections of these names")
    if prediction.foreign:
        how = f"by another tool ({html.escape(str(prediction.about.get('source', 'not known')))})"
    yield f"{len(prediction.genes)} genes in {n_predicted} of {table.n_obs} spots, {how}; unit {prediction.unit}."
    scores = prediction.score[np.isfinite(prediction.score)]
    if prediction.foreign and len(scores):
        yield (
            f"Against the measured expression of this object, the mean correlation over all genes is "
            f"<b>{scores.mean():.2f}</b>; {(scores >= TRUSTED).sum()} of {len(scores)} genes reach {TRUSTED}."
        )
        yield f'<span class="warning">{NOT_HELD_OUT}</span>'
        return
    if known or named:
        yield (
            f'<span class="warning">The model was trained on {html.escape(", ".join(known or named))}'
            + ("" if known else ", which may be this tissue")
            + ". There the maps look better than on other tissue, and a comparison with the measured values tells "
            "nothing; the held-out correlations below hold. nh.tl.predict_expression(sdata) without model= predicts "
            "every spot by a model that never saw it.</span>"
        )
    if not len(scores):
        yield '<span class="warning">No held-out scores are known: how far to trust a gene is not known either.</span>'
        return
    yield (
        "On tissue that the predictor had not seen, the mean correlation over all genes is "
        f"<b>{scores.mean():.2f}</b>; {(scores >= TRUSTED).sum()} of {len(scores)} genes reach {TRUSTED}."
    )
    expected = prediction.about.get("expected_pearson")
    if expected is not None and not known:
        text = f"Expected here, by how alike this tissue is to that of the training: {expected:.2f}."
        yield f'<span class="warning">{text}</span>' if expected < scores.mean() / 2 else text
    if prediction.evaluated is not None and "pearson" in prediction.evaluated:
        found = prediction.evaluated["pearson"].mean()
        high = ", too high since the model was trained on it" if known else ""
        yield f"Against the measured expression of this object: {found:.2f} (mean over genes){high}."


def _scores(prediction: Prediction) -> pd.DataFrame:
    """Scores of the genes, best first."""
    name = prediction.score_name
    scores = pd.DataFrame({name: prediction.score}, index=pd.Index(prediction.genes, name="gene"))
    if prediction.evaluated is not None:
        names = {"ceiling": "noise ceiling"} if prediction.foreign else {"pearson": HERE, "ceiling": "noise ceiling"}
        scores = scores.join(prediction.evaluated.rename(columns=names)[list(names.values())])
    return scores.sort_values(name, ascending=False, kind="stable")


def _as_html(scores: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in (scores.index.name, *scores.columns))
    rows = [
        f"<tr><td>{html.escape(str(gene))}</td>" + "".join(f'<td class="n">{value:.3f}</td>' for value in row) + "</tr>"
        for gene, row in zip(scores.index, scores.to_numpy(), strict=True)
    ]
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _picture(draw: Callable[..., Any], *args: Any, **options: Any) -> str:
    """What a function of ``pl`` draws, inside the page."""
    axes = draw(*args, **options, return_ax=True)
    first = axes.flat[0] if isinstance(axes, np.ndarray) else axes
    return _embedded(first.figure)


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _spots(table: AnnData, genes: list[str], values: np.ndarray, cmap: str = "viridis") -> str:
    """Maps of values (n_spots, n_genes) without an image: the spots alone."""
    if "spatial" not in table.obsm:
        return "<p>Neither an image nor places of the spots are here: nothing can be drawn.</p>"
    xy = np.asarray(table.obsm["spatial"])
    figure, axes = plt.subplots(1, len(genes), figsize=(3.2 * len(genes), 3.2), squeeze=False, layout="constrained")
    for ax, gene, of_gene in zip(axes[0], genes, values.T, strict=True):
        dots = ax.scatter(*xy.T, c=of_gene, s=6, cmap=cmap, linewidths=0)
        figure.colorbar(dots, ax=ax, shrink=0.7)
        ax.set(title=gene, aspect="equal", xticks=[], yticks=[])
        ax.invert_yaxis()
    return _embedded(figure)


def _clusters(sdata: SpatialData, table_key: str, prediction: Prediction, has_image: bool) -> str:
    """Leiden clusters of the predicted panel, with the genes that mark them."""
    some = np.isfinite(prediction.values).all(axis=1)
    if some.sum() < FEWEST_SPOTS or len(prediction.genes) < 3:
        return "<p>Too few spots or genes to cluster.</p>"
    table = sdata.tables[table_key]
    values = prediction.values[some]
    with threads():
        found = leiden(values.astype(np.float32), RESOLUTION, 0).astype(str)
    labels = pd.Series(pd.NA, index=table.obs_names, dtype=object)
    labels[some] = found.to_numpy()
    marked = _markers(pd.DataFrame(values, columns=list(prediction.genes)), found.to_numpy())
    if not has_image:
        return _as_list(marked)
    drawn = pictures(sdata, table_key=table_key, shapes_key=None, image_key=None, microns_per_pixel=None)
    palette = dict(zip(marked, cluster_colours(len(marked)), strict=True))
    figure, axes = tissue_panels(drawn, 1, figsize=None, dpi=None, extra=1.0)
    for ax, picture in zip(axes[:, 0], drawn, strict=True):
        draw_image(ax, picture, faint=True)
        draw_spots(ax, picture, facecolors=[palette.get(label, NOT_KNOWN) for label in labels.iloc[picture.rows]])
        draw_scale_bar(ax, picture)
        ax.set_title(section_title(picture))
    draw_legend(axes[0, 0], palette)
    return _embedded(figure) + _as_list(marked)


def _markers(values: pd.DataFrame, clusters: np.ndarray, n: int = 5) -> dict[str, list[str]]:
    """The genes of each cluster that are highest above the others, in their standard deviations."""
    means = ((values - values.mean()) / (values.std(ddof=0) + 1e-9)).groupby(clusters).mean()
    means = means.loc[sorted(means.index, key=int)]
    return {str(name): list(row.nlargest(n).index) for name, row in means.iterrows()}


def _as_list(marked: dict[str, list[str]]) -> str:
    items = [f"<li>{html.escape(name)}: {html.escape(', '.join(genes))}</li>" for name, genes in marked.items()]
    return f"<p>Highest genes of each cluster:</p><ul>{''.join(items)}</ul>"


def _novelty(novelty: np.ndarray) -> str:
    known = novelty[np.isfinite(novelty)]
    text = f"{(known > 1).mean():.0%} of the spots look unlike the training tissue (novelty above 1)."
    return f'<span class="warning">{text}</span>' if (known > 1).mean() > 0.5 else text


def _methods(prediction: Prediction) -> str:
    """Sentences for a methods section, with what is known."""
    about, config = prediction.about, prediction.config
    if prediction.foreign:
        return html.escape(
            f"Expression of {len(prediction.genes)} genes was predicted by another tool (name it and its version here; "
            f"found as {about.get('source', 'not known')}, unit {prediction.unit}) and scored with nh2st_scverse "
            f"{__version__}. {NOT_HELD_OUT}"
        )
    sections = [str(name) for name in prediction.described.get("trained_on", {})]
    patch = float(about.get("patch_um", np.nan))
    fields = ", ".join(f"{float(field) * patch:.0f}" for field in config.get("fields", [1.0]))
    seen = f", from fields of view of {fields} µm around each spot" if np.isfinite(patch) else ""
    parts = [
        f"Expression of {len(prediction.genes)} genes was predicted from H&E images with NH2ST as implemented in "
        f"nh2st_scverse {__version__} (model {about.get('model', 'not known')}, preset "
        f"{about.get('preset', 'not known')}, image encoder {about.get('encoder', 'not known')}){seen}.",
        "Every spot was predicted by models that were trained without its group or block of tissue."
        if prediction.cross_fitted
        else f"The model was trained on {len(sections) or 'other'} sections"
        + (f" ({', '.join(sections)})." if 0 < len(sections) <= 12 else "."),
    ]
    known = prediction.pearson[np.isfinite(prediction.pearson)]
    if len(known):
        parts.append(f"The mean Pearson correlation on held-out tissue was {known.mean():.3f} over {len(known)} genes.")
    return html.escape(" ".join(parts))
