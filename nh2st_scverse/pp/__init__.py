"""Preparation: look at what the tools will use before they use it."""

from __future__ import annotations

from nh2st_scverse.pp._check import check

__all__ = ["check"]
