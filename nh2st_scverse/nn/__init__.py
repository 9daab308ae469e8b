"""The network: torch only."""

from __future__ import annotations

from nh2st_scverse.nn.config import Config
from nh2st_scverse.nn.hypergraph import HypergraphConv, incidence
from nh2st_scverse.nn.losses import info_nce, pearson_loss
from nh2st_scverse.nn.member import Member
from nh2st_scverse.nn.nh2st import NH2STNetwork

__all__ = ["Config", "HypergraphConv", "Member", "NH2STNetwork", "incidence", "info_nce", "pearson_loss"]


def __dir__() -> list[str]:
    return sorted(__all__)
