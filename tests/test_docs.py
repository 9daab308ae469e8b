"""What is written once appears where it is asked for, and what is asked for is completed."""

from __future__ import annotations

import inspect
from typing import Any, TypedDict

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

import nh2st_scverse as nh
from nh2st_scverse._docs import PARAMETERS, documented
from nh2st_scverse.nn.config import TYPES, settings_docs

WITH_SETTINGS = ("train", "predict_expression", "cross_fit", "cross_validate")


class Options(TypedDict, total=False):
    size: int
    name: str


def test_a_text_stands_where_its_name_does() -> None:
    @documented(own="own\n    First line.\n    Second line.")
    def tool(cache_dir: str) -> int:
        """Do it.

        Parameters
        ----------
        $cache_dir
        $own
            $100 stays, as $own inside a line does.
        """
        return len(cache_dir)

    told = (inspect.getdoc(tool) or "").splitlines()
    own = told.index("own")
    assert "\n".join(told[4:own]) == PARAMETERS["cache_dir"]
    assert told[own:] == ["own", "    First line.", "    Second line.", "    $100 stays, as $own inside a line does."]
    assert tool("abc") == 3 and str(inspect.signature(tool)) == "(cache_dir: 'str') -> 'int'"
    with pytest.raises(KeyError, match="nonsense"):

        @documented()
        def _() -> None:
            """$nonsense"""


def test_keywords_are_named_one_by_one() -> None:
    @documented(keywords=Options)
    def tool(data: str, *, key: str = "a", **options: Any) -> dict[str, Any]:
        return options

    parameters = inspect.signature(tool).parameters
    assert list(parameters) == ["data", "key", "size", "name"]
    assert parameters["size"].default is ... and parameters["size"].annotation is int
    assert tool("x", size=3) == {"size": 3} and tool.__doc__ is None


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_every_setting_is_explained_and_completed(name: str) -> None:
    tool = getattr(nh.tl, name)
    assert set(TYPES) <= set(inspect.signature(tool).parameters)
    lines = [line.strip() for line in tool.__doc__.splitlines()]
    assert set(settings_docs().splitlines()) <= set(lines)
    assert not [line for line in lines if line.startswith("$")]


def test_jupyter_completes_settings() -> None:
    shell = InteractiveShell.instance()
    for name in WITH_SETTINGS:
        shell.user_ns[name] = getattr(nh.tl, name)
        code = f"{name}(sdata, max_e"
        with provisionalcompleter():
            found = {one.text for one in shell.Completer.completions(code, len(code))}
        assert "max_epochs=" in found
