"""Draw the first figure of the README: two genes in the olfactory bulb of a mouse that the model never saw.

    NH2ST_DATA=folder python tests/benchmarks/readme_figure.py   # some ten minutes on two cores

Needs the folder of real sections; writes ``tutorials/bulb.png``. The model is of the sections of mouse A; drawn are
the genes with the highest and the tenth highest correlation in that of mouse D.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import matplotlib
from accuracy import mob

import nh2st_scverse as nh

ROOT = Path(__file__).parents[2]


def main() -> None:
    matplotlib.use("Agg")
    warnings.simplefilter("ignore")
    sections, mice = mob(Path(os.environ.get("NH2ST_DATA", ROOT.parent / "shared" / "data")))
    home = [sdata for name, sdata in sections.items() if mice[name] != "D"]
    away = next(sdata for name, sdata in sections.items() if mice[name] == "D")
    model = nh.tl.train(home, progress=False)
    nh.tl.predict_expression(away, model=model, progress=False)
    scores = nh.tl.evaluate(away)
    genes = scores.index[[0, 9]]
    nh.pl.expression(away, genes, size=1.6, save=ROOT / "tutorials" / "bulb.png", dpi=110)
    print(scores.loc[genes, ["pearson", "ceiling"]].round(2).to_string(), f"\nmean of {len(scores)}: ", end="")
    print(scores["pearson"].mean().round(3))


if __name__ == "__main__":
    main()
