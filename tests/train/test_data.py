"""Data of a training: some spots of some sections, which are views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nh2st_scverse.data.folds import make_folds
from nh2st_scverse.data.neighbours import neighbourhoods
from nh2st_scverse.data.section import Section
from nh2st_scverse.train.data import Data

Positions = tuple[tuple[int, np.ndarray], ...]


def same_section(a: Section, b: Section) -> bool:
    arrays = [
        (a.rows, b.rows),
        (a.geometry.coordinates, b.geometry.coordinates),
        (a.geometry.instances, b.geometry.instances),
        (a.usable, b.usable),
        (a.neighbours.nodes, b.neighbours.nodes),
        (a.neighbours.mask, b.neighbours.mask),
        (a.neighbours.offsets, b.neighbours.offsets),
    ]
    return all(np.array_equal(x, y) for x, y in arrays) and (a.name, a.group, a.spacing_um) == (
        b.name,
        b.group,
        b.spacing_um,
    )


def same(a: Data, b: Data) -> bool:
    """Whether two data say the same of the same spots."""
    each = range(len(a.sections))
    return len(a.sections) == len(b.sections) and all(
        same_section(a.sections[i], b.sections[i])
        and np.array_equal(a.input(i), b.input(i))
        and np.array_equal(a.target(i), b.target(i))
        and np.array_equal(a.trainable(i), b.trainable(i))
        for i in each
    )


@pytest.fixture(scope="module")
def some(data: Data) -> Positions:
    """Spots of both sections in another order of the sections and of the spots."""
    rng = np.random.default_rng(0)
    return tuple((i, rng.permutation(data.sections[i].n_spots)[:60]) for i in (1, 0))


def test_some_spots_are_those_of_the_whole(data: Data, some: Positions) -> None:
    few = data.take(some)
    for i, (at, spots) in enumerate(some):
        whole, section = data.sections[at], few.sections[i]
        assert np.array_equal(section.rows, whole.rows[spots])
        assert np.array_equal(section.xy_um, whole.xy_um[spots])
        assert np.array_equal(few.input(i), data.inputs[at][spots])
        assert np.array_equal(few.target(i), data.targets.values[at][spots])
        assert np.array_equal(few.trainable(i), data.targets.trainable[at][spots])
        expected = neighbourhoods(section.xy_um, whole.spacing_um, section.usable, whole.neighbours.nodes.shape[1])
        assert np.array_equal(section.neighbours.nodes, expected.nodes)  # among those spots alone
        assert (section.name, section.group) == (whole.name, whole.group)
    assert few.groups == [data.sections[at].group for at, _ in some]
    assert (few.targets.genes, few.targets.unit) == (data.targets.genes, data.targets.unit)


@pytest.mark.parametrize("kind", ["data", "patch_data"])
def test_nothing_is_copied(kind: str, request: pytest.FixtureRequest) -> None:
    data: Data = request.getfixturevalue(kind)
    everything = tuple((i, np.arange(s.n_spots)) for i, s in enumerate(data.sections))
    half = tuple((i, np.arange(0, s.n_spots, 2)) for i, s in enumerate(data.sections))
    few = data.take(half).take(((0, np.arange(10)),))
    for taken in (data.take(half), few, data.take(everything), data.whole(half)):
        for i, section in enumerate(taken.sections):
            assert taken.inputs[i] is data.inputs[i] and np.shares_memory(taken.inputs[i], data.inputs[i])
            assert taken.targets.values[i] is data.targets.values[i]
            assert taken.targets.trainable[i] is data.targets.trainable[i]
            if section.n_spots == data.sections[i].n_spots:  # all of them: not even when they are looked at
                assert np.shares_memory(taken.input(i), data.inputs[i])
                assert np.shares_memory(taken.target(i), data.targets.values[i])
                assert section is data.sections[i]


def test_folds_of_a_training_copy_nothing(data: Data) -> None:
    one = replace(data, sections=tuple(replace(section, group="one") for section in data.sections))
    for sections in (data, one):  # whole sections, and blocks of them
        for fold in make_folds(sections.sections, field_um=75.0):
            for taken, side in (
                (sections.take(fold.train), fold.train),
                (sections.whole(fold.held_out), fold.held_out),
            ):
                assert all(x is data.inputs[i] for x, (i, _) in zip(taken.inputs, side, strict=True))
                assert all(x is data.targets.values[i] for x, (i, _) in zip(taken.targets.values, side, strict=True))


def test_taking_composes(data: Data, some: Positions) -> None:
    rng = np.random.default_rng(1)
    then = tuple((i, rng.permutation(60)[:30]) for i in (1, 0))
    together = tuple((some[i][0], some[i][1][spots]) for i, spots in then)
    assert same(data.take(some).take(then), data.take(together))
    everything = tuple((i, np.arange(60)) for i in range(2))
    assert same(data.take(some).take(everything), data.take(some))
    assert same(data.whole(some).take(((0, some[0][1]), (1, some[1][1]))), data.take(some))
    assert not same(data.take(then), data.take(together))


def test_data_without_targets(data: Data, some: Positions) -> None:
    seen = Data(data.sections, data.inputs)
    for one in (seen, seen.take(some)):
        for i, section in enumerate(one.sections):
            assert one.target(i).shape == (section.n_spots, 0)
            assert np.array_equal(one.trainable(i), section.usable)


def test_patches_are_told_from_features(data: Data, patch_data: Data) -> None:
    assert not data.has_patches and patch_data.has_patches
