"""Spots per second and peak memory of training, against a plain loop: ``python tests/benchmarks/training.py``.

The plain loop stands for the published way: the patch of a spot and every node of its neighbourhood pass the ResNet18
separately, 10 passes for a spot. Both train the same network (preset "paper", 224 px, K = 9) on the same spots, on two
threads, in 32 bits unless said otherwise, each in a process of its own; cases take turns, and the medians are compared.
Batches of 64 need 20 GB of memory in the plain loop.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch

import nh2st_scverse as nh
from nh2st_scverse._options import Run
from nh2st_scverse.data.cohort import collect
from nh2st_scverse.data.inputs import cut_patches
from nh2st_scverse.data.targets import Counts, choose_panel, measure
from nh2st_scverse.nn import Config
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.fit import fit_member

CASES = {  # name: (batch size, targets of the ratio to the plain loop of a batch size)
    "plain loop, batch 8": 8,
    "end to end, batch 8": 8,
    "end to end, batch 8, 16 bits": 8,
    "plain loop, batch 64": 64,
    "end to end, batch 64": 64,
    "end to end, batch 64, 16 bits": 64,
    "cached features, batch 128": 128,
}
TARGETS = {"end to end, batch 8": 2.5, "end to end, batch 64": 4.0, "cached features, batch 128": 200.0}


def section(config: Config) -> Data:
    """One section of 926 spots with patches, or with features."""
    cohort = collect(nh.datasets.synthetic(), n_nodes=config.n_nodes)
    counts = Counts.of(cohort, None)
    panel = choose_panel(counts, "highest_mean", 250)
    targets = measure(counts, panel, library=config.library, smoothed=config.smooth)
    encoder = nh.encoders.get("resnet18") if config.fine_tune else nh.encoders.get()
    if config.fine_tune:
        return Data(cohort.sections, cut_patches(cohort, cohort.patch_um, encoder.input_size), targets)
    rng = np.random.default_rng(0)  # how features were made is not measured here
    features = rng.normal(size=(cohort.sections[0].n_spots, 2 * encoder.dim))
    return Data(cohort.sections, (features,), targets)


class Clock(L.Callback):
    """Time of each batch after the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


def engine(batch_size: int, steps: int, *, fine_tune: bool, half: bool) -> float:
    """Spots per second of the training that users call."""
    preset = "paper" if fine_tune else "default"
    config = Config.preset(preset, batch_size=batch_size, half=half, max_epochs=1 if fine_tune else 40, max_steps=None)
    one, clock = section(config), Clock()
    trunk = nh.encoders.get("resnet18").trunk() if fine_tune else None
    options = {"callbacks": [clock], "limit_val_batches": 1} | ({"limit_train_batches": steps + 1} if fine_tune else {})
    fit_member(one, one, [np.arange(2)], config, Run(device="cpu", trainer_kwargs=options), trunk=trunk)
    return batch_size * (len(clock.ends) - 1) / (clock.ends[-1] - clock.ends[0])


def plain(batch_size: int, steps: int) -> float:
    """Spots per second of the plain loop."""
    from torchvision.transforms.functional import normalize

    from nh2st_scverse.nn import NH2STNetwork

    config = Config.preset("paper")
    one = section(config)
    patches, expression = one.input(0), torch.from_numpy(one.target(0))
    trunk = nh.encoders.get("resnet18").trunk().resnet
    network = NH2STNetwork(config, 512 * 7 * 7, expression.shape[1])
    optimizer = torch.optim.Adam([*trunk.parameters(), *network.parameters()], lr=config.lr)
    around = one.sections[0].neighbours
    order = np.random.default_rng(0).permutation(one.sections[0].n_spots)

    def encode(spots: np.ndarray) -> torch.Tensor:  # (n,) to (n, 512, 7, 7)
        images = torch.from_numpy(patches[spots]).permute(0, 3, 1, 2).float() / 255
        return trunk.forward_features(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    begin = 0.0
    for step in range(steps + 1):
        if step == 1:  # the first warms up
            begin = time.perf_counter()
        spots = order[step * batch_size : (step + 1) * batch_size]
        query = encode(spots).flatten(2).transpose(1, 2).flatten(1)
        nodes = encode(around.nodes[spots].ravel()).flatten(1).unflatten(0, (batch_size, -1))
        mask = torch.from_numpy(around.mask[spots])
        images = network(query, nodes, mask, torch.from_numpy(around.offsets[spots]).float())
        losses = network.losses(images, expression[spots], expression[around.nodes[spots]], mask)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    return batch_size * steps / (time.perf_counter() - begin)


def run_case(case: str) -> dict[str, float]:
    """Run one case in this process."""
    torch.set_num_threads(2)
    size = CASES[case]
    steps = 4 if size == 8 else 1
    if case.startswith("plain"):
        speed = plain(size, steps)
    else:
        speed = engine(size, 2 * steps, fine_tune="end to end" in case, half="16 bits" in case)
    return {"spots_per_s": speed, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    """Run the cases in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--case", choices=CASES, help="run this one alone, and print JSON")
    parser.add_argument("--without", default="none", help="leave out cases whose name holds this, e.g. 'batch 64'")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(run_case(given.case)))
        return
    rows = []
    for _ in range(given.repeats):
        for case in CASES:
            if given.without in case:
                continue
            done = subprocess.run([sys.executable, __file__, "--case", case], stdout=subprocess.PIPE, check=True)
            rows.append({"case": case} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).groupby("case", sort=False).median()
    plain_of = [f"plain loop, batch {64 if CASES[case] == 64 else 8}" for case in table.index]
    table["ratio"] = table["spots_per_s"] / table["spots_per_s"].reindex(plain_of).to_numpy()
    table["memory_ratio"] = table["peak_gb"] / table["peak_gb"].reindex(plain_of).to_numpy()
    table["target"] = pd.Series(TARGETS)
    print(table.round(2).to_string(na_rep=""))


if __name__ == "__main__":
    main()
