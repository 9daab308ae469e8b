from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import nh2st_scverse as nh
from nh2st_scverse.data import folds
from nh2st_scverse.data.folds import Fold, make_folds
from nh2st_scverse.data.section import Section, locate_sections


@pytest.fixture(scope="module")
def sections() -> list[Section]:
    """Two sections of about 100 spots, a group each."""
    return locate_sections(nh.datasets.synthetic(width_um=1200, n_sections=2))


@pytest.fixture(scope="module")
def large() -> Section:
    return locate_sections(nh.datasets.synthetic(width_um=2000))[0]


def grouped(sections: Sequence[Section], groups: Sequence[str]) -> list[Section]:
    """The sections again and again, under new names, in the given groups."""
    return [replace(sections[i % len(sections)], name=f"s{i}", group=group) for i, group in enumerate(groups)]


def together(sections: Sequence[Section]) -> list[Section]:
    """The sections in one group."""
    return [replace(section, group="one") for section in sections]


def indices_fit(fold: Fold, sections: Sequence[Section]) -> bool:
    """Whether a fold names spots of these sections, no spot twice, and none to train on that it holds out."""
    named = [(i, int(spot)) for side in (fold.train, fold.held_out) for i, spots in side for spot in spots]
    there = all(0 <= i < len(sections) and 0 <= spot < sections[i].n_spots for i, spot in named)
    return there and len(set(named)) == len(named)


def test_each_group_is_held_out_once_and_never_on_both_sides(sections: list[Section]) -> None:
    groups = ["a", "b", "a", "c", "b"]
    many = grouped(sections, groups)
    found = make_folds(many, field_um=75)
    assert [fold.name for fold in found] == ["a", "b", "c"]
    for fold in found:
        held = {groups[at] for at, _ in fold.held_out}
        assert held == {fold.name}
        assert {groups[at] for at, _ in fold.train} == set(groups) - held
        assert [at for at, _ in fold.train] == [i for i, group in enumerate(groups) if group not in held]
        assert fold.apart and indices_fit(fold, many)
        for at, spots in (*fold.train, *fold.held_out):
            assert np.array_equal(spots, np.arange(many[at].n_spots))


@pytest.mark.parametrize("max_folds", [2, 3, 4])
def test_groups_share_folds_when_there_are_many(sections: list[Section], max_folds: int) -> None:
    groups = list("abcde")
    many = grouped(sections, groups)
    found = make_folds(many, field_um=75, max_folds=max_folds, seed=3)
    held = [groups[at] for fold in found for at, _ in fold.held_out]
    assert len(found) == max_folds
    assert sorted(held) == groups
    for fold in found:
        assert {groups[at] for at, _ in fold.held_out}.isdisjoint(groups[at] for at, _ in fold.train)
    again = make_folds(many, field_um=75, max_folds=max_folds, seed=3)
    assert [fold.name for fold in again] == [fold.name for fold in found]
    others = [make_folds(many, field_um=75, max_folds=max_folds, seed=seed) for seed in range(10)]
    assert len({tuple(fold.name for fold in other) for other in others}) > 1


def test_a_single_fold_still_trains_on_something(sections: list[Section]) -> None:
    (fold,) = make_folds(grouped(sections, "abcd"), field_um=75, max_folds=1)
    assert (len(fold.train), len(fold.held_out)) == (3, 1)
    (block,) = make_folds(sections[:1], field_um=75, max_folds=1)
    assert 0 < len(block.held_out[0][1]) < sections[0].n_spots / 2
    assert len(block.train[0][1]) >= folds.FEWEST_SPOTS


@pytest.mark.parametrize("field_um", [75.0, 130.0, 187.5])
def test_blocks_share_no_neighbour_and_no_pixel(large: Section, field_um: float) -> None:
    section = large
    found = make_folds([section], field_um=field_um)
    held = np.concatenate([spots for fold in found for _, spots in fold.held_out])
    assert np.array_equal(np.sort(held), np.arange(section.n_spots))
    row = {int(r): i for i, r in enumerate(section.rows)}
    for fold in found:
        ((_, stay),), ((_, spots),) = fold.train, fold.held_out
        assert fold.apart and indices_fit(fold, [section])
        train = section.take(stay)
        nodes, mask = section.neighbours.nodes, section.neighbours.mask
        seen = {int(n) for spot in spots for n in nodes[spot][mask[spot]]}  # all that the prediction looks at
        nodes, mask = train.neighbours.nodes, train.neighbours.mask
        learnt = {row[int(train.rows[n])] for i in range(train.n_spots) for n in nodes[i][mask[i]]}
        assert len(seen) >= len(spots) > 0
        assert seen.isdisjoint(learnt)
        for a in seen:
            for b in learnt:
                apart = np.abs(section.xy_um[a] - section.xy_um[b])
                assert apart.max() >= field_um, "two square patches overlap"


def test_a_margin_that_leaves_little_shrinks_where_it_only_stops_the_training(sections: list[Section]) -> None:
    strict = make_folds(sections[:1], field_um=150)
    loose = make_folds(sections[:1], field_um=150, strict=False)
    for a, b in zip(strict, loose, strict=True):
        assert np.array_equal(a.held_out[0][1], b.held_out[0][1])
        assert set(a.train[0][1]) <= set(b.train[0][1])
        assert set(b.held_out[0][1]).isdisjoint(b.train[0][1])
        assert a.apart and not b.apart  # what shares pixels is not reported
    assert sum(len(fold.train[0][1]) for fold in loose) > sum(len(fold.train[0][1]) for fold in strict)


def test_several_sections_of_one_group_are_cut_into_blocks_each(sections: list[Section]) -> None:
    one = together(sections)
    for fold in make_folds(one, field_um=75):
        assert [at for at, _ in fold.train] == [at for at, _ in fold.held_out] == [0, 1]
        assert indices_fit(fold, one)


def test_spots_without_an_image_are_not_trained_on(sections: list[Section]) -> None:
    usable = np.arange(sections[0].n_spots) % 5 > 0
    for fold in make_folds([replace(sections[0], usable=usable)], field_um=75):
        assert usable[fold.train[0][1]].all()


def test_too_little_tissue_is_refused(sections: list[Section]) -> None:
    small = [section.take(np.argsort(section.xy_um[:, 0])[:20]) for section in sections]
    with pytest.raises(ValueError, match=r"fewer than 24 spots of section_0_spots: 20 spots are left"):
        make_folds(small[:1], field_um=75)
    with pytest.raises(ValueError, match=r"without \['a'\]: expected at least 24 spots to train on, found 20"):
        make_folds(grouped(small, "ab"), field_um=75)
