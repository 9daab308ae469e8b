"""What the user passes: made plain, or refused in words that say what was expected, found and what mends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nh2st_scverse import _validators as v

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # names
    "one dot": (lambda: v.check_name(".", argument="key_added"), ValueError, r"key_added to be a name .*found '\.'\.$"),
    "two dots": (lambda: v.check_name("..", argument="key_added"), ValueError, r"found '\.\.'"),
    "no name": (lambda: v.check_name("", argument="key_added"), ValueError, "found ''"),
    "a long name": (lambda: v.check_name("a" * 300, argument="k"), ValueError, "at most 200 characters.*found 300:"),
    "a slash": (lambda: v.check_name("a/b", argument="section"), ValueError, "found 'a/b': use section='a_b'"),
    "a null": (lambda: v.check_name("a\0b", argument="k"), ValueError, "letters, digits"),
    "a space": (lambda: v.check_name("my section", argument="section"), ValueError, "section='my_section'"),
    "a line": (lambda: v.check_name("a\n", argument="k"), ValueError, "letters, digits"),
    "underscores first": (lambda: v.check_name("__a", argument="k"), ValueError, "letters, digits"),
    "a number": (lambda: v.check_name(3, argument="k"), ValueError, "letters, digits"),
    "no value": (lambda: v.check_name(None, argument="k"), ValueError, "found None"),
    "capitals": (
        lambda: v.check_name("NH2ST", argument="key_added", beside=["a", "nh2st"]),
        ValueError,
        "key_added='NH2ST' differs from 'nh2st' in capitals only",
    ),
    # mappings and groups
    "1 and '1'": (lambda: v.by_text({1: 0, "1": 0}, argument="sdata"), ValueError, "differ as texts, found '1' twice"),
    "numpy's 1 and '1'": (lambda: v.by_text({np.int64(1): 0, "1": 0}, argument="sdata"), ValueError, "'1' twice"),
    "None as a key": (lambda: v.by_text({None: 0}, argument="sdata"), ValueError, "every part of sdata, found None"),
    "NaN as a group": (lambda: v.as_label(np.nan, argument="groups"), ValueError, "every part of groups, found nan"),
    "NA as a group": (lambda: v.as_label(pd.NA, argument="groups"), ValueError, "found <NA>"),
    "NaT as a group": (lambda: v.as_label(pd.NaT, argument="groups"), ValueError, "found NaT"),
    "an empty group": (lambda: v.as_label(" ", argument="groups"), ValueError, "found ' '"),
    "a list as a group": (lambda: v.as_label(["a"], argument="groups"), TypeError, "texts or numbers, found .'a'."),
    # lists
    "a set": (lambda: v.as_genes({"a", "b"}), TypeError, r"in an order, found a set.*sorted\(genes\)"),
    "a frozen set": (lambda: v.as_genes(frozenset("ab")), TypeError, "in an order"),
    "keys of a dict": (lambda: v.as_genes({"a": 1}.keys()), TypeError, "in an order"),
    "a dict": (lambda: v.as_genes({"a": 1}), TypeError, "to be a list, found dict"),
    "a text": (lambda: v.as_genes("ACTB"), TypeError, "to be a list, found str: 'ACTB'"),
    "None": (lambda: v.as_genes(None), TypeError, "to be a list, found NoneType"),
    "a table of names": (lambda: v.as_genes(np.array([["a"]])), TypeError, "to be a list, found ndarray"),
    "a generator": (lambda: v.as_genes(x for x in "ab"), TypeError, "to be a list, found generator"),
    "numbers as genes": (lambda: v.as_genes([1, 2]), TypeError, "names of genes, found 1"),
    "NaN as a gene": (lambda: v.as_genes(["a", np.nan]), TypeError, "names of genes, found nan"),
    "no gene": (lambda: v.as_genes([]), ValueError, "found an empty list"),
    "a gene twice": (lambda: v.as_genes(pd.Index(["a", "b", "a"])), ValueError, r"found \['a'\] more than once"),
    # numbers
    "True": (lambda: v.check_positive(True, argument="x"), ValueError, "x to be a number above 0, found True"),
    "NaN": (lambda: v.check_positive(np.nan, argument="x"), ValueError, "found nan"),
    "infinity": (lambda: v.check_positive(np.inf, argument="x"), ValueError, "found inf"),
    "a number as text": (lambda: v.check_positive("3", argument="x"), ValueError, "found '3'"),
    "numbers": (lambda: v.check_positive(np.array([1.0]), argument="x"), ValueError, "above 0"),
    "half a count": (lambda: v.as_count(2.5, argument="n"), ValueError, "whole number of at least 1, found 2.5"),
    "too few": (lambda: v.as_count(1, argument="n", least=2), ValueError, "at least 2, found 1"),
    "True as a count": (lambda: v.as_count(True, argument="n"), ValueError, "found True"),
    "NaN as a count": (lambda: v.as_count(np.nan, argument="n"), ValueError, "found nan"),
    "None as a count": (lambda: v.as_count(None, argument="n"), ValueError, "found None"),
    # files and choices
    "no path": (lambda: v.as_file(3, argument="path"), TypeError, "path to be a path, found int 3"),
    "an empty path": (lambda: v.as_file("", argument="path"), TypeError, "to be a path, found str ''"),
    "a folder": (lambda: v.as_file("/tmp", argument="path"), FileNotFoundError, "It is a folder"),
    "a null in a path": (lambda: v.as_file("a\0b", argument="path"), FileNotFoundError, "found none at"),
    "a choice that is a list": (lambda: v.check_one_of(["a"], ("a", "b"), argument="by"), ValueError, "one of"),
    "a choice that is an array": (lambda: v.check_one_of(np.ones(2), {"a": 1}, argument="by"), ValueError, "one of"),
    "allow None": (lambda: v.as_allowances(None), ValueError, "allow to be among .*coarse"),  # type: ignore[arg-type]
    "allow a number": (lambda: v.as_allowances(3), ValueError, "allow to be among"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_refused(case: str) -> None:
    call, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        call()


def test_what_can_be_meant_is_made_plain(tmp_path: Path) -> None:
    for name in ("nh2st", "A1", "a.b-c_d", "a" * 200, "_a"):
        v.check_name(name, argument="key_added", beside=["nh2st", "b"])
    for genes in (
        ["a", "b"],
        ("a", "b"),
        np.array(["a", "b"]),
        pd.Index(["a", "b"]),
        pd.Series(["a", "b"], index=[7, 3]),
    ):
        found = v.as_genes(genes)
        assert found == ["a", "b"] and {type(gene) for gene in found} == {str}
    assert v.as_genes(pd.Categorical(["b", "a"])) == ["b", "a"]
    for count in (3, 3.0, np.int8(3), np.float32(3)):
        assert v.as_count(count, argument="n") == 3 and isinstance(v.as_count(count, argument="n"), int)
    for number in (0.5, np.float32(0.5), np.float64(0.5)):
        v.check_positive(number, argument="x")
    assert v.by_text({1: "a", "2": "b", np.int64(3): "c"}, argument="groups") == {"1": "a", "2": "b", "3": "c"}
    assert [v.as_label(x, argument="groups") for x in (1, "b", np.str_("c"), True)] == ["1", "b", "c", "True"]
    (tmp_path / "a.txt").write_text("x")
    for path in (tmp_path / "a.txt", str(tmp_path / "a.txt")):
        assert v.as_file(path, argument="path") == tmp_path / "a.txt"
    v.check_one_of(None, (None, "a"), argument="by")
    assert v.as_allowances("coarse") == v.as_allowances(["coarse"]) == {"coarse"}


def test_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert v.as_path("~/a.png", argument="path") == tmp_path / "a.png"
    (tmp_path / "a.png").touch()
    assert v.as_file("~/a.png", argument="path") == tmp_path / "a.png"


def test_ids_of_any_type_are_the_whole_numbers_that_they_mean() -> None:
    for kind in ("float64", "object", "Int64", "int32", "category"):
        assert v.whole_ids(pd.Series([3, 1, 2]).astype(kind)).tolist() == [3, 1, 2]
        assert v.whole_ids(pd.Series([3, 1, 2]).astype(kind)).dtype == np.int64
    for others in (["1", "2"], ["a", "b"], [1.5, 2.0]):
        assert v.whole_ids(pd.Series(others)).tolist() == others
