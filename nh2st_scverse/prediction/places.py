"""Where a prediction may be written: checked before any work."""

from __future__ import annotations

from collections.abc import Sequence

from anndata import AnnData
from spatialdata import SpatialData

from nh2st_scverse._constants import FEATURES
from nh2st_scverse._keys import Keys, Place
from nh2st_scverse._logging import logger
from nh2st_scverse.prediction.reading import JOIN, in_x, is_there, listed, lost_record, predictions_of, written

LARGEST_LAYER = 2**34  # bytes of a layer
NEW_TABLE = "pass table_added='predicted' for a new table of the predicted genes alone, or "


def check_size(table: AnnData, remedy: str = NEW_TABLE) -> None:
    """A layer holds a value for every gene of the table, predicted or not: too much for half a million bins."""
    size = 4 * table.n_obs * table.n_vars
    if size > LARGEST_LAYER:
        raise ValueError(
            f"A layer for {table.n_obs} spots x {table.n_vars} genes would take {size / 2**30:.0f} GB of memory: "
            + remedy
            + "keep fewer genes in the table."
        )


def check_genes(genes: Sequence[str], table: AnnData) -> None:
    """Raise ValueError when a table has none of the genes, say how many it lacks otherwise."""
    lacking = [gene for gene in genes if gene not in table.var_names]
    if len(lacking) == len(genes):
        raise ValueError(
            f"None of the {len(genes)} genes of the model (e.g. {list(genes[:3])}) is in the table, which has e.g. "
            f"{list(table.var_names[:3])}. Rename the genes of one, or pass table_added='predicted' for a new table."
        )
    if lacking:
        logger.warning(
            "%d of %d genes of the model are not in the table and left out, e.g. %s. "
            "table_added='predicted' writes all of them to a new table.",
            len(lacking),
            len(genes),
            lacking[:3],
        )


def check_free(table: AnnData, key: str, places: Sequence[Place] | None = None, *, argument: str = "key_added") -> None:
    """Raise ValueError when names of a key hold what no prediction of this key wrote, or are those of another one.

    `places` are the names in question; None: all that belong to the key.
    """
    keys = Keys(key)
    places = keys.places if places is None else places
    if ("uns", FEATURES) in places:
        raise ValueError(
            f"{argument}={key!r} is where the features of the images are kept. Choose another {argument}=."
        )
    mine = written(table, key)
    taken = [place for place in places if is_there(table, place) and place not in mine]
    if taken:
        raise ValueError(
            f"{argument}={key!r} would overwrite {listed(taken)} of the table, which no prediction wrote. "
            + (f"If one did, its record was lost when tables were joined: {JOIN}. " if lost_record(table, key) else "")
            + f"Choose another {argument}=, or rename or delete these first."
        )
    for other in predictions_of(table):
        shared = set(places) & set(Keys(other).places)
        if other != key and shared:
            raise ValueError(
                f"{argument}={key!r} shares {listed(sorted(shared))} with the prediction {other!r} of the table. "
                f"Choose another {argument}=."
            )
    for place, name in places:  # a zarr store on a disk that ignores case has one place for both
        alike = [n for n in getattr(table, place) if n is not None and n != name and str(n).lower() == name.lower()]
        if alike:
            raise ValueError(
                f"{argument}={key!r} would write {place}[{name!r}] beside {place}[{alike[0]!r}], which differs in "
                f"capital letters only and cannot be stored beside it. Choose another {argument}=."
            )


def check_added(sdata: SpatialData, table_added: str, key: str) -> None:
    """Raise ValueError when the name of a new table is taken by anything but an earlier prediction under the key."""
    elements = [name for _, name, _ in sdata.gen_elements()]
    alike = [name for name in elements if name.lower() == table_added.lower() and name != table_added]
    if alike:
        raise ValueError(
            f"table_added={table_added!r} differs from {alike[0]!r} in capital letters only and cannot be stored "
            "beside it: choose another name."
        )
    if table_added not in elements:
        return
    if table_added not in sdata.tables or not in_x(sdata.tables[table_added], key):
        raise ValueError(f"table_added={table_added!r} is there already, among {elements}: choose another name.")
    others = [other for other in predictions_of(sdata.tables[table_added]) if other != key]
    if others:
        raise ValueError(
            f"Table {table_added!r} holds the predictions {others} too, which would be lost: choose another name."
        )
