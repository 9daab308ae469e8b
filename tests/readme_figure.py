"""Draw the first figure of the README: two genes in the olfactory bulb of a mouse that the model never saw.

    NH2ST_DATA=folder python tests/readme_figure.py   # writes tutorials/bulb.png; some ten minutes on two cores

Needs the folder of real sections. Both mice are predicted by models of the other one; drawn are the genes with the
highest and the tenth highest correlation, in the section of mouse D.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import sys  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from accuracy import mob  # noqa: E402

import nh2st_scverse as nh  # noqa: E402


def main() -> None:
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
