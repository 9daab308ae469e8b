from __future__ import annotations

import pytest

from nh2st_scverse.tl._splits import SPLITS, outer_groups


def test_each_group_on_its_own_by_default() -> None:
    assert outer_groups(["b", "a", "b"], None, 0) == ["b", "a", "b"]


def test_a_number_shuffles_groups_into_folds() -> None:
    groups = [f"p{i}" for i in range(10)] + ["p0"]
    found = outer_groups(groups, 3, 0)
    together = {label: set(label.split(", ")) for label in found}
    assert sorted(map(len, together.values())) == [3, 3, 4]
    assert set().union(*together.values()) == set(groups)
    assert all(group in together[label] for group, label in zip(groups, found, strict=True))
    assert outer_groups(groups, 3, 0) == found != outer_groups(groups, 3, 1)
    # which groups share a fold does not depend on the order of the sections
    assert dict(zip(groups[::-1], outer_groups(groups[::-1], 3, 0), strict=True)) == dict(
        zip(groups, found, strict=True)
    )


def test_published_splits() -> None:
    patients = [f"{i:02}" for i in range(23)]
    found = outer_groups(patients, "stnet", 0)
    assert sorted(len(label.split(", ")) for label in set(found)) == [2] + [3] * 7
    assert found == outer_groups(patients, "stnet", 5)  # has its own seed
    assert found == outer_groups(patients, 8, 2021)
    assert outer_groups(["P2", "P5", "P9", "P10"], "skin", 0) == ["P2", "P5", "P9", "P10"]
    assert len(set(outer_groups([f"ZEN{i}" for i in range(40, 50)], "zen", 0))) == 3
    assert {name: split.n_folds for name, split in SPLITS.items()} == {
        "stnet": 8,
        "skin": 4,
        "pcw": 3,
        "mouse": 4,
        "int": 8,
        "zen": 3,
    }


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"Expected 23 groups \(one for each patient\).*'stnet', found 3: \['a'"):
        outer_groups(["a", "b", "c"], "stnet", 0)
    with pytest.raises(ValueError, match=r"Expected at least 8 groups \(one for each slide\)"):
        outer_groups(["a", "b", "c"], "int", 0)
    with pytest.raises(ValueError, match=r"folds to be one of \['stnet', .*found 'her2st'"):
        outer_groups(["a", "b", "c"], "her2st", 0)
    for folds in (1, 4, 2.0, True):
        with pytest.raises(ValueError, match=r"a number from 2 to that of the groups, which is 3.*found"):
            outer_groups(["a", "b", "c"], folds, 0)  # type: ignore[arg-type]
