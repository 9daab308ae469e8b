from __future__ import annotations

import numpy as np
import pytest
import torch

from nh2st_scverse.data.neighbours import neighbourhoods
from nh2st_scverse.train.batches import Batches, InOrder, compact_groups

GRID = np.stack(np.meshgrid(np.arange(20), np.arange(15)), axis=-1).reshape(-1, 2) * 100.0  # µm


def test_groups_hold_every_spot_once_and_are_compact() -> None:
    nodes = neighbourhoods(GRID, 100.0, np.ones(300, dtype=bool), 9).nodes
    rng = np.random.default_rng(0)
    compact = compact_groups(GRID, 16, rng)
    assert np.array_equal(np.sort(np.concatenate(compact)), np.arange(300))
    assert sorted(map(len, compact)) == [12, *[16] * 18]
    anywhere = np.split(rng.permutation(300)[:288], 18)

    def patches_per_spot(groups: list[np.ndarray]) -> float:
        return sum(len(np.unique(nodes[g])) for g in groups) / sum(map(len, groups))

    assert patches_per_spot(compact) < 2.6  # 6 x 6 patches for 4 x 4 spots would be 2.25
    assert patches_per_spot(anywhere) > 7


def batches(**settings: object) -> Batches:
    """Two sections of 300 spots, of which every seventh is not trained on."""
    ready = torch.tensor([i for i in range(600) if i % 7])
    return Batches(ready, size=64, places=[GRID, GRID], **settings)


def test_an_epoch_has_every_spot_once_and_batches_of_both_sections() -> None:
    made = batches()
    parts = list(made)
    assert [len(part) for part in parts] == [64] * 8 == [64] * len(made)
    seen = torch.cat(parts)
    assert len(seen.unique()) == 512
    assert (seen % 7).all()
    assert np.mean([(part < 300).any() and (part >= 300).any() for part in parts]) > 0.7
    assert len(set(made.order(0).tolist())) == 514


def test_a_small_batch_shares_patches_and_still_has_a_spot_from_elsewhere() -> None:
    nodes = neighbourhoods(GRID, 100.0, np.ones(300, dtype=bool), 9).nodes
    parts = [part.numpy() for part in Batches(torch.arange(300), size=8, places=[GRID])]
    assert len(np.unique(np.concatenate(parts))) == 296
    patches = [len(np.unique(nodes[part])) for part in parts]
    assert np.mean(patches) < 35  # of 72: 24 or 25 for a compact 2 x 4, and 9
    apart = [np.linalg.norm(GRID[part[0]] - GRID[part[1:]], axis=1).min() for part in parts]
    assert np.mean(np.array(apart) > 300) > 0.8


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    epoch = 0
    made, same = batches(seed=1, epoch=lambda: epoch), batches(seed=1, epoch=lambda: epoch)
    first = torch.cat(list(made))
    assert torch.equal(first, torch.cat(list(same)))
    assert not torch.equal(first, torch.cat(list(batches(seed=2))))
    epoch = 1
    assert not torch.equal(first, torch.cat(list(made)))
    epoch = 0
    assert torch.equal(first, torch.cat(list(made)))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches(processes: int) -> None:
    whole = [tuple(part.tolist()) for part in batches()]
    parts = [list(batches(share=lambda r=rank: (r, processes))) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1  # or the processes would wait for each other
    taken = [tuple(batch.tolist()) for part in parts for batch in part]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(whole)
    assert len(taken) == len(whole) // processes * processes


def test_more_processes_than_batches_still_have_one_each() -> None:
    ready = torch.arange(10)
    parts = [list(Batches(ready, size=64, share=lambda r=rank: (r, 3))) for rank in range(3)]
    assert [[len(batch) for batch in part] for part in parts] == [[10]] * 3


def test_without_places_any_spots_meet() -> None:
    made = Batches(torch.arange(600), size=60)
    first = next(iter(made))
    assert len(first.unique()) == 60
    assert first.float().std() > 100


def test_in_order() -> None:
    made = InOrder(torch.arange(7), 3)
    assert [part.tolist() for part in made] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(made) == 3
