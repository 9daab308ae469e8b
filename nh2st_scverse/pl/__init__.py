"""Figures: predicted beside measured expression, scores of genes, clusters, and the course of a training.

===========================  ==========================================================================
:func:`expression`           H&E | measured | predicted, one row per gene and section
:func:`gene_scores`          all genes by held-out correlation, with their noise ceiling
:func:`clusters`             clusters of measured and of predicted expression, in matching colours
:func:`history`              loss terms and validation of every member of a model
===========================  ==========================================================================

Every function takes ``figsize``, ``dpi``, ``save`` and ``return_ax`` as the figures of squidpy do, and changes nothing
in the object it is given.
"""

from __future__ import annotations

from nh2st_scverse.pl._clusters import clusters
from nh2st_scverse.pl._expression import expression
from nh2st_scverse.pl._gene_scores import gene_scores
from nh2st_scverse.pl._history import history

__all__ = ["clusters", "expression", "gene_scores", "history"]
