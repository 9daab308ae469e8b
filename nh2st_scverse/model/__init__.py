"""The trained model that a user holds, and its files."""

from __future__ import annotations

from nh2st_scverse.model.card import Card
from nh2st_scverse.model.nh2st import NH2ST, check_context, check_residuals, novelty_of
from nh2st_scverse.model.trust import Trust, principal_genes

__all__ = ["NH2ST", "Card", "Trust", "check_context", "check_residuals", "novelty_of", "principal_genes"]
