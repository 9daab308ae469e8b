"""Documentation of parameters that several public functions share, written once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from textwrap import indent
from typing import Any, TypeVar, cast, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])

PARAMETERS = {
    "elements": """\
table_key, shapes_key, image_key
    Elements of the object; None means the only candidate.""",
    "prediction": """\
key
    Name of the prediction.
table_key
    Table; None means the only one that has the prediction.""",
    "drawn": """\
shapes_key
    Draw only this section. None: all sections of the table.
image_key
    H&E image, or a mapping of shapes to images. None: the one under the spots or the grid.
microns_per_pixel
    Of the image at full resolution, when the object does not tell.""",
    "figure": """\
figsize, dpi
    Size of the figure in inches, and dots per inch. None: those of matplotlib, and 200 dots per inch in a file.
save
    File to write the figure to.
return_ax
    Return the axes.""",
    "microns_per_pixel": """\
microns_per_pixel
    Of the image at full resolution, when the object does not tell.""",
    "allow": """\
allow
    Known problems to go on with: ``"coarse"`` (image too coarse for the patch), ``"off_tissue"``, ``"other_stain"``
    (the image does not look like H&E).""",
    "device": """\
device
    ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or ``"mps"``: for the encoder and for the network.""",
    "progress": """\
progress
    Show progress bars. That of a training shows the terms of its loss, which fall (errors, and the contrastive losses
    of the query and the neighbour branch), and ``held-out r``, the mean correlation on tissue that is held out.""",
    "cache_dir": """\
cache_dir
    Folder in which features are kept while they are computed: an interrupted encoding goes on where it stopped. Those
    of more than 100,000 places in all are kept nowhere else: a later call reads them from here.""",
    "client": """\
client
    ``distributed.Client`` of a dask cluster, whose workers then read and encode the patches.""",
}
"""Entries of a numpydoc section, by the name that stands for them in a docstring."""


def documented(*, keywords: type | None = None, **more: str) -> Callable[[F], F]:
    """Let a line ``$name`` of a docstring stand for a shared text, and name the keywords that ``**`` takes.

    The function itself is kept. Its signature shows the fields of the TypedDict `keywords` one by one, with the
    default ``...`` where it depends on other arguments: JupyterLab completes what a signature names, and does not
    look into ``**settings: Unpack[Settings]``, as type checkers do.

    Raises
    ------
    KeyError
        The docstring asks for a text that is not there.
    """
    texts = PARAMETERS | more

    def document(function: F) -> F:
        if function.__doc__ is not None:  # as it is under python -OO
            function.__doc__ = re.sub(
                r"^( *)\$(\w+)$", lambda line: indent(texts[line[2]], line[1]), function.__doc__, flags=re.M
            )
        if keywords is not None:
            signature = inspect.signature(function)
            named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
            given = [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=kind)
                for name, kind in get_type_hints(keywords).items()
            ]
            cast(Any, function).__signature__ = signature.replace(parameters=[*named, *given])
        return function

    return document
