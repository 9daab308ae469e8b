"""Gene expression from H&E images, for people who work with scanpy and squidpy.

A :class:`spatialdata.SpatialData` goes in, predicted genes come out as a layer of its table::

    import nh2st_scverse as nh

    sdata = nh.datasets.synthetic()
    nh.tl.predict_expression(sdata)
    nh.tl.evaluate(sdata)
    nh.pl.expression(sdata)

===============  =====================================================================
``nh.io``        sections from files and from AnnData
``nh.datasets``  sections to try things on, no download
``nh.pp``        before the model: checks and preparation
``nh.tl``        train, predict, evaluate
``nh.pl``        figures
``nh.explore``   a panel in JupyterLab to look through predicted genes and spots
``nh.NH2ST``     a trained model: ``save`` and ``load``
``nh.metrics``   scores of arrays
``nh.encoders``  images to features
``nh.data``      SpatialData to arrays
``nh.nn``        the torch modules
===============  =====================================================================

Each part is imported when it is first used: ``import nh2st_scverse`` takes no time and loads no torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nh2st_scverse import data, datasets, encoders, io, metrics, nn, pl, pp, tl
    from nh2st_scverse.model import NH2ST
    from nh2st_scverse.pl._explore import explore

__all__ = ["NH2ST", "__version__", "data", "datasets", "encoders", "explore", "io", "metrics", "nn", "pl", "pp", "tl"]

try:
    __version__ = importlib.metadata.version("nh2st-scverse")
except importlib.metadata.PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"

# anndata says this of every array that is written to zarr, and a user can do nothing about it
warnings.filterwarnings("ignore", message="zarr v3 autosharding")

_PARTS = frozenset({"data", "datasets", "encoders", "io", "metrics", "nn", "pl", "pp", "tl"})
_NAMES = {"NH2ST": "model", "explore": "pl._explore"}


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
