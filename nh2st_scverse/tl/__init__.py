"""Tools: train, predict, evaluate."""

from __future__ import annotations

from nh2st_scverse.tl._biology import biology
from nh2st_scverse.tl._cross_fit import cross_fit
from nh2st_scverse.tl._cross_validate import cross_validate
from nh2st_scverse.tl._evaluate import evaluate
from nh2st_scverse.tl._modules import modules
from nh2st_scverse.tl._predict import predict_expression
from nh2st_scverse.tl._region import region
from nh2st_scverse.tl._report import report
from nh2st_scverse.tl._summary import paired_differences, summarise
from nh2st_scverse.tl._train import train

summarize = summarise  # as it is spelt in America

__all__ = [
    "biology",
    "cross_fit",
    "cross_validate",
    "evaluate",
    "modules",
    "paired_differences",
    "predict_expression",
    "region",
    "report",
    "summarise",
    "summarize",
    "train",
]


def __dir__() -> list[str]:
    return sorted(__all__)
