"""Figures: predicted beside measured expression, scores of genes and methods, clusters, and what the model sees.

============================  =========================================================================
:func:`check`                 spots on their H&E, and some of the patches
:func:`expression`            H&E | measured | predicted, one row per gene and section
:func:`modules`               the same for sets of genes
:func:`slide_map`             predictions on a grid over an H&E slide, without gaps
:func:`scatter`               predicted against measured, spot by spot
:func:`uncertainty`           predictions and how far they may be off
:func:`gene_scores`           all genes by held-out correlation, with their noise ceiling
:func:`spatially_variable`    Moran's I of measured and of predicted genes
:func:`region`                what is high or low inside a region, against how far to trust it
:func:`clusters`              clusters of measured and of predicted expression, in matching colours
:func:`benchmark`             NH2ST and baselines on tissue that none of them saw
:func:`history`               loss terms and validation of every member of a model
:func:`neighbourhood`         one spot: its patches, hyperedges, and what a model looks at
============================  =========================================================================

Every function takes ``figsize``, ``dpi``, ``save`` and ``return_ax`` as the figures of squidpy do, and changes nothing
in the object it is given.
"""

from __future__ import annotations

from nh2st_scverse.pl._benchmark import benchmark
from nh2st_scverse.pl._check import check
from nh2st_scverse.pl._clusters import clusters
from nh2st_scverse.pl._expression import expression
from nh2st_scverse.pl._gene_scores import gene_scores
from nh2st_scverse.pl._history import history
from nh2st_scverse.pl._modules import modules
from nh2st_scverse.pl._neighbourhood import neighbourhood
from nh2st_scverse.pl._region import region
from nh2st_scverse.pl._scatter import scatter
from nh2st_scverse.pl._slide_map import slide_map
from nh2st_scverse.pl._spatially_variable import spatially_variable
from nh2st_scverse.pl._uncertainty import uncertainty

__all__ = [
    "benchmark",
    "check",
    "clusters",
    "expression",
    "gene_scores",
    "history",
    "modules",
    "neighbourhood",
    "region",
    "scatter",
    "slide_map",
    "spatially_variable",
    "uncertainty",
]


def __dir__() -> list[str]:
    return sorted(__all__)
