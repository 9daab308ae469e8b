from __future__ import annotations

import pytest

from nh2st_scverse.tl._splits import outer_groups


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


def test_folds_that_are_given() -> None:
    assert outer_groups(["a", "b", "c", "a"], [["a", "c"], ["b"]], 0) == ["a, c", "b", "a, c", "a, c"]


def test_groups_that_do_not_fit() -> None:
    for given in ([["a"], ["b"]], [["a", "b", "c"]], [["a", "b"], ["b", "c"]], [["a"], ["b"], ["d"]]):
        with pytest.raises(ValueError, match=r"each of the groups \['a', 'b', 'c'\] once, found"):
            outer_groups(["a", "b", "c"], given, 0)
    with pytest.raises(ValueError, match=r"nh.datasets.paper\(...\).folds has them, found 'stnet'"):
        outer_groups(["a", "b", "c"], "stnet", 0)  # type: ignore[arg-type]
    for folds in (1, 4, 2.0, True):
        with pytest.raises(ValueError, match=r"a number from 2 to that of the groups, which is 3.*found"):
            outer_groups(["a", "b", "c"], folds, 0)  # type: ignore[arg-type]
