"""``nh2st``: the tools for folders of slides, from the command line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import pandas as pd

INPUTS = click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the results.")
KEY = click.option("--key", default="nh2st", show_default=True, help="Name of the prediction.")
ALLOW = click.option(
    "--allow",
    multiple=True,
    help="A known problem to go on with: coarse (an image too coarse for the patch), off_tissue, other_stain.",
)
MICRONS = click.option("--microns-per-pixel", type=float, help="µm per pixel of slides whose files do not tell it.")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="nh2st-scverse")
def main() -> None:
    """Predict spatial gene expression from H&E, for folders of slides.

    INPUTS are SpatialData stores (.zarr), H&E slides (svs, tif, ...), Space Ranger folders, or folders of these. A
    command that was stopped goes on when it is given again; slides that fail are listed and left out.
    """
    warnings.filterwarnings("ignore", module=r"(anndata|dask|spatialdata|zarr)")  # on themselves
    warnings.filterwarnings("ignore", message="zarr v3 autosharding")


@contextmanager
def _told() -> Any:
    """What the tools refuse is a message and not a traceback."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise click.ClickException(_text(error)) from error


def _text(error: Exception) -> str:
    """Its message alone: that of a KeyError without quotes, that of the system with the file."""
    if isinstance(error, OSError):
        return str(error) or repr(error)
    return str(error.args[0]) if error.args else repr(error)


def _end(table: pd.DataFrame, out: Path) -> None:
    """Print what became of the slides; a failure of one is one of the command."""
    failed = table[table["status"] == "failed"]
    click.echo(f"{(table['status'] == 'done').sum()} of {len(table)} slides are done: {out}")
    for name, row in failed.iterrows():
        click.echo(f"  failed: {name}: {row['error']}")
    if len(failed):
        sys.exit(1)


@main.command()
@INPUTS
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File for the lines, CSV.")
@ALLOW
@MICRONS
def check(inputs: tuple[Path, ...], out: Path | None, allow: tuple[str, ...], microns_per_pixel: float | None) -> None:
    """Show what the tools find in each slide, and what is wrong with it."""
    from nh2st_scverse import archive, pp

    lines = []
    with _told():
        for source in archive.find(inputs):
            try:
                found: pd.DataFrame = pp.check(archive.read(source, microns_per_pixel), allow=allow)
            except Exception as error:  # of a reader: pp.check raises nothing
                row = ["", "read", _text(error), "error", ""]
                found = pd.DataFrame([row], columns=["section", "check", "found", "status", "remedy"])
            wrong = found[found["status"] != "ok"]
            click.echo(f"{source.name}: {_count(wrong['status'])}")
            for _, line in wrong.iterrows():
                remedy = f" -> {line['remedy']}" if line["remedy"] else ""
                click.echo(f"  {line['status']}: {line['section']} {line['check']}: {line['found']}{remedy}")
            found.insert(0, "slide", source.name)
            lines.append(pd.DataFrame(found))
    table = pd.concat(lines)
    if out:
        table.to_csv(out, index=False)
    if (table["status"] == "error").any():
        sys.exit(1)


def _count(statuses: pd.Series) -> str:
    """How many errors and warnings there are."""
    counts = {status: int((statuses == status).sum()) for status in ("error", "warning")}
    return ", ".join(f"{n} {status}{'s' * (n > 1)}" for status, n in counts.items() if n) or "ok"


@main.command()
@INPUTS
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the model.")
@click.option("--n-genes", type=int, default=250, show_default=True, help="Genes of highest mean.")
@click.option("--gene", "genes", multiple=True, help="A gene of the panel, instead; again for each.")
@click.option(
    "--groups",
    type=click.Path(path_type=Path, exists=True),
    help="CSV with columns slide (name of the store without .zarr) and group, a patient say.",
)
@click.option("--preset", default="default", show_default=True, help="default, or paper: the published network.")
@click.option("--encoder", help="Name of an encoder, several joined by '+'; the default if left out.")
@click.option("--epochs", type=int, help="Most epochs of the training; that of the preset if left out.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same model.")
@click.option("--checkpoint-dir", type=click.Path(path_type=Path), help="Where a training that stops can go on.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where features of the images are kept.")
@ALLOW
@DEVICE
def train(inputs: tuple[Path, ...], out: Path, groups: Path | None, epochs: int | None, **options: Any) -> None:
    """Train one model on all sections with counts, and save it."""
    from nh2st_scverse import archive, tl
    from nh2st_scverse.model.hub import check_folder

    if options["genes"]:
        options["n_genes"] = None
    settings: dict[str, Any] = {name: value for name, value in options.items() if value not in (None, ())}
    if epochs is not None:
        settings["max_epochs"] = epochs
    if "checkpoint_dir" in settings:
        settings["resume"] = settings["checkpoint_dir"].exists()
    with _told():
        check_folder(out, argument="--out")
        if out.exists() and any(out.iterdir()):
            raise FileExistsError(f"{out} exists: choose another --out.")
        objects = {source.name: archive.read(source) for source in archive.find(inputs)}
        model = tl.train(objects, groups=None if groups is None else _groups(groups, list(objects)), **settings)
        click.echo(model)
        click.echo(f"Saved to {model.save(out)}")


def _groups(path: Path, names: list[str]) -> dict[str, str]:
    """The group of each section, from a table of two columns."""
    table = pd.read_csv(path, dtype=str)
    if not {"slide", "group"} <= set(table):
        raise ValueError(f"Expected columns slide and group in {path}, found {list(table)}.")
    of = dict(zip(table["slide"], table["group"], strict=True))
    missing = [name for name in names if not isinstance(of.get(name), str)]
    if missing:
        raise ValueError(f"Expected a group of each section in {path}, found none of {missing}.")
    return {name: of[name] for name in names}


@main.command()
@INPUTS
@OUT
@click.option("--model", required=True, help="Folder of a saved model, or one at the hub: hf://owner/name.")
@KEY
@click.option("--uncertainty", is_flag=True, help="Write standard deviations, too.")
@click.option("--spacing-um", type=float, help="Of the grid over slides without spots; that of the model if left out.")
@click.option(
    "--with-image", is_flag=True, help="Copy the image into the result: pages of `report` then show maps on the tissue."
)
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where features of the images are kept.")
@click.option("--client", help="Address of the scheduler of a dask cluster, whose workers then encode.")
@ALLOW
@MICRONS
@DEVICE
def predict(
    inputs: tuple[Path, ...],
    out: Path,
    model: str,
    spacing_um: float | None,
    with_image: bool,
    client: str | None,
    microns_per_pixel: float | None,
    **options: Any,
) -> None:
    """Predict each slide, and write a store with the table and its places: <out>/<slide>.zarr."""
    from nh2st_scverse import NH2ST, archive, pp, tl
    from nh2st_scverse.data.technologies import regions_of

    key = options.pop("key")
    with _told(), nullcontext() if client is None else _client(client) as connection:
        trained = NH2ST.load(model)

        def job(source: archive.Source, path: Path) -> None:
            sdata = archive.read(source, microns_per_pixel)
            if not sdata.shapes and spacing_um is not None:
                pp.grid(sdata, spacing_um=spacing_um)
            tl.predict_expression(sdata, model=trained, key_added=key, client=connection, progress=False, **options)
            table = next(name for name, one in sdata.tables.items() if key in one.uns)
            places = [region.shapes_key for region in regions_of(sdata, sdata.tables[table])[0]]
            sdata.subset([table, *places, *(sdata.images if with_image else ())]).write(path)

        settings = {
            "model": trained.identifier,
            "key": key,
            "uncertainty": options["uncertainty"],
            "spacing_um": spacing_um,
            "with_image": with_image,
            "microns_per_pixel": microns_per_pixel,
            "allow": sorted(options["allow"]),
        }
        table = archive.each(archive.find(inputs), out, ".zarr", command="predict", settings=settings, job=job)
    _end(table, out)


def _client(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout="10s")
    except OSError as error:
        raise click.ClickException(f"Expected the scheduler of a dask cluster at {address}: {error}") from error


@main.command()
@INPUTS
@OUT
@KEY
def evaluate(inputs: tuple[Path, ...], out: Path, key: str) -> None:
    """Score the prediction of each store against its counts: <out>/<slide>.csv, gene by gene."""
    from nh2st_scverse import archive, tl

    def job(source: archive.Source, path: Path) -> None:
        scores = tl.evaluate(archive.read(source), key=key)
        scores.to_csv(path)
        click.echo(f"{source.name}: mean Pearson {scores['pearson'].mean():.3f} over {len(scores)} genes")

    _run(inputs, out, ".csv", "evaluate", key, job)


@main.command()
@INPUTS
@OUT
@KEY
def report(inputs: tuple[Path, ...], out: Path, key: str) -> None:
    """Write one page for each store with a prediction: <out>/<slide>.html."""
    from nh2st_scverse import archive, tl

    def job(source: archive.Source, path: Path) -> None:
        tl.report(archive.read(source), path, key=key)

    _run(inputs, out, ".html", "report", key, job)


def _run(inputs: tuple[Path, ...], out: Path, suffix: str, command: str, key: str, job: Callable[..., None]) -> None:
    from nh2st_scverse import archive

    with _told():
        table = archive.each(archive.find(inputs), out, suffix, command=command, settings={"key": key}, job=job)
    _end(table, out)


if __name__ == "__main__":
    main()
