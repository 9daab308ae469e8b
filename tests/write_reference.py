"""Write the reference page of all public names, tutorials/reference.md: ``python tests/write_reference.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import nh2st_scverse as nh

PAGE = Path(__file__).parents[1] / "tutorials" / "reference.md"
PARTS = ("io", "datasets", "pp", "tl", "pl", "encoders", "metrics")
HEAD = """# Reference

Every public function with its arguments and what it does, in one line. What the arguments mean, what is returned and
written, and an example is in the docstring: `help(nh.tl.train)`, or `nh.tl.train?` in Jupyter. Written by
`python tests/write_reference.py`.

"""


def page() -> str:
    """The text of the page."""
    parts = []
    for part in PARTS:
        module = getattr(nh, part)
        parts.append(f"## nh.{part}\n\n{first_line(module)}\n")
        parts += [entry(f"nh.{part}.{name}", getattr(module, name)) for name in sorted(module.__all__)]
    own = [name for name in nh.__all__ if inspect.isfunction(getattr(nh, name))]
    parts.append("## nh\n")
    parts += [entry(f"nh.{name}", getattr(nh, name)) for name in [*own, "NH2ST"]]
    for name, value in vars(nh.NH2ST).items():
        if not name.startswith("_"):
            owner = "nh.NH2ST" if isinstance(value, classmethod) else "model"
            parts.append(
                entry(f"{owner}.{name}", getattr(nh.NH2ST, name) if callable(value) or owner != "model" else value)
            )
    return HEAD + "\n".join(parts)


def entry(name: str, value: Any) -> str:
    """One line with the call, one with what it does."""
    return f"- **`{name}{arguments(value)}`**<br>{first_line(value)}\n"


def arguments(value: Any) -> str:
    """The signature without types; nothing for a property or a protocol."""
    if isinstance(value, property) or getattr(value, "_is_protocol", False):
        return ""
    signature = inspect.signature(value)
    kept = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    if any(p.default is ... for p in kept):  # settings: the docstring tells them all
        rest = inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)
        kept = [*(p for p in kept if p.default is not ...), rest]
    return str(signature.replace(parameters=kept, return_annotation=signature.empty))


def first_line(value: Any) -> str:
    """The first line of a docstring, with names as code."""
    line = (inspect.getdoc(value) or "").partition("\n")[0].replace("``", "`")
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
