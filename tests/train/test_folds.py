from __future__ import annotations

import numpy as np
import pytest

import nh2st_scverse as nh
from nh2st_scverse.data.section import Section, find_sections
from nh2st_scverse.train import folds
from nh2st_scverse.train.folds import make_folds


def named(sections: list[Section], n: int) -> list[Section]:
    """The sections again and again, under new names."""
    many = []
    for i in range(n):
        section = sections[i % len(sections)]
        many.append(section.keep(np.arange(section.n_spots)))
        many[-1].name = f"s{i}"
    return many


def names(fold: folds.Fold) -> list[str]:
    return [section.name for section in fold.train]


def test_each_group_is_held_out_once_and_never_on_both_sides(sections: list[Section]) -> None:
    many, groups = named(sections, 5), ["a", "b", "a", "c", "b"]
    found = make_folds(many, groups, patch_um=75)
    assert [fold.name for fold in found] == ["a", "b", "c"]
    for fold in found:
        held = {groups[at] for at, _ in fold.held_out}
        assert held == {fold.name}
        assert held.isdisjoint(fold.train_groups)
        assert {groups[int(name[1:])] for name in names(fold)} == set(groups) - held
        assert fold.train_groups == [groups[int(name[1:])] for name in names(fold)]
        for at, spots in fold.held_out:
            assert np.array_equal(spots, np.arange(many[at].n_spots))


@pytest.mark.parametrize("max_folds", [2, 3, 4])
def test_groups_share_folds_when_there_are_many(sections: list[Section], max_folds: int) -> None:
    many, groups = named(sections, 5), list("abcde")
    found = make_folds(many, groups, patch_um=75, max_folds=max_folds, seed=3)
    held = [groups[at] for fold in found for at, _ in fold.held_out]
    assert len(found) == max_folds
    assert sorted(held) == groups
    for fold in found:
        assert {groups[at] for at, _ in fold.held_out}.isdisjoint(fold.train_groups)
    again = make_folds(many, groups, patch_um=75, max_folds=max_folds, seed=3)
    assert [fold.name for fold in again] == [fold.name for fold in found]
    others = [make_folds(many, groups, patch_um=75, max_folds=max_folds, seed=seed) for seed in range(10)]
    assert len({tuple(fold.name for fold in other) for other in others}) > 1


def test_a_single_fold_still_trains_on_something(sections: list[Section]) -> None:
    (fold,) = make_folds(named(sections, 4), list("abcd"), patch_um=75, max_folds=1)
    assert (len(fold.train), len(fold.held_out)) == (3, 1)
    (block,) = make_folds(sections[:1], ["a"], patch_um=75, max_folds=1)
    assert 0 < len(block.held_out[0][1]) < sections[0].n_spots / 2
    assert block.train[0].n_spots >= folds.FEWEST


@pytest.fixture(scope="module")
def large() -> Section:
    return find_sections(nh.datasets.synthetic(width_um=2000))[1][0]


@pytest.mark.parametrize("patch_um", [75.0, 130.0, 187.5])
def test_blocks_share_no_neighbour_and_no_pixel(large: Section, patch_um: float) -> None:
    section = large
    found = make_folds([section], ["one"], patch_um=patch_um)
    held = np.concatenate([spots for fold in found for _, spots in fold.held_out])
    assert np.array_equal(np.sort(held), np.arange(section.n_spots))
    row = {int(r): i for i, r in enumerate(section.rows)}
    for fold in found:
        (train,), ((_, spots),) = fold.train, fold.held_out
        nodes, mask = section.neighbours.nodes, section.neighbours.mask
        seen = {int(n) for spot in spots for n in nodes[spot][mask[spot]]}  # all that the prediction looks at
        nodes, mask = train.neighbours.nodes, train.neighbours.mask
        learnt = {row[int(train.rows[n])] for i in range(train.n_spots) for n in nodes[i][mask[i]]}
        assert len(seen) >= len(spots) > 0
        assert seen.isdisjoint(learnt)
        for a in seen:
            for b in learnt:
                apart = np.abs(section.xy_um[a] - section.xy_um[b])
                assert apart.max() >= patch_um, "two square patches overlap"


def test_a_margin_that_leaves_little_shrinks_where_it_only_stops_the_training(sections: list[Section]) -> None:
    section = sections[0]
    strict = make_folds([section], ["one"], patch_um=150)
    loose = make_folds([section], ["one"], patch_um=150, strict=False)
    for a, b in zip(strict, loose, strict=True):
        assert np.array_equal(a.held_out[0][1], b.held_out[0][1])
        assert set(a.train[0].rows) <= set(b.train[0].rows)
        assert set(section.rows[b.held_out[0][1]]).isdisjoint(b.train[0].rows)
    assert sum(fold.train[0].n_spots for fold in loose) > sum(fold.train[0].n_spots for fold in strict)


def test_several_sections_of_one_group_are_cut_into_blocks_each(sections: list[Section]) -> None:
    for fold in make_folds(sections, ["p", "p"], patch_um=75):
        assert names(fold) == [section.name for section in sections]
        assert [at for at, _ in fold.held_out] == [0, 1]


def test_too_little_tissue_is_refused(sections: list[Section]) -> None:
    small = [section.keep(np.argsort(section.xy_um[:, 0])[:20]) for section in sections]
    with pytest.raises(ValueError, match=r"fewer than 24 spots of section_0_spots: 20 spots are left"):
        make_folds(small[:1], ["one"], patch_um=75)
    with pytest.raises(ValueError, match=r"without \['a'\]: expected at least 24 spots to train on, found 20"):
        make_folds(small, ["a", "b"], patch_um=75)
