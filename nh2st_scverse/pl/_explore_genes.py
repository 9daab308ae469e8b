"""The list of genes in ``nh.explore``: searched, sorted, and walked by keys."""

from __future__ import annotations

from html import escape
from typing import Any, TypedDict

import ipywidgets as widgets
import numpy as np
import traitlets

from nh2st_scverse.pl._explore import Chosen, Shown, split_set
from nh2st_scverse.pl._expression import close_names

ORDERS = {"held-out correlation": "r", "share of the ceiling": "share", "name": None}


class Key(TypedDict, total=False):
    """What the browser tells of a key."""

    step: int  # down the list
    take: str  # the first hit of what was typed
    forget: bool  # the drawn regions


class GeneList(widgets.VBox):
    """A field to search in, and the genes that match."""

    gene = traitlets.Unicode()  # that is chosen; several are a set

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._filling = False  # what the list selects meanwhile was not chosen
        narrow = widgets.Layout(width="auto")
        orders = {k: v for k, v in ORDERS.items() if v != "share" or shown.genes["share"].notna().any()}
        self.search = widgets.Text(placeholder="find a gene; A, B is a set", layout=narrow).add_class("nh2st-search")
        self.note = widgets.HTML(layout=narrow).add_class("nh2st-note")
        self.order = widgets.Dropdown(options=orders, value="r", layout=narrow)
        self.list = widgets.Select(options=[], rows=14, layout=narrow)
        children = [self.search, self.note, widgets.Label("sorted by"), self.order, self.list]
        super().__init__(children, layout=widgets.Layout(overflow="visible"))
        self._fill()
        self.search.observe(self._typed, "value")
        self.order.observe(lambda _: self._fill(), "value")
        self.list.observe(self._listed, "value")
        self.observe(lambda _: self._select(), "gene")

    @property
    def found(self) -> list[str]:
        """Genes in the list."""
        return [name for _, name in self.list.options]

    def key(self, pressed: Key) -> None:
        """Up and down, also while the search has the focus; Enter comes with what was typed."""
        if "step" in pressed and self.found:
            at = self.found.index(self.gene) + pressed["step"] if self.gene in self.found else 0
            self.gene = self.found[max(0, min(len(self.found) - 1, at))]
        if "take" in pressed:
            self.search.value = pressed["take"]
            label, parts = split_set(self.search.value)
            if not self._last() or not self.found:
                return
            if len(parts) > 1:  # complete the last gene
                parts[-1] = self.found[0]
                self.search.value = Chosen(tuple(dict.fromkeys(parts)), label).text
            else:
                self.gene = self.found[0]

    def _last(self) -> str:
        """What is searched for: of a set its last gene."""
        text = self.search.value.strip().lower()
        return text if text in self._shown.by_lower_case else text.replace(";", ",").rpartition(",")[2].strip()

    def _fill(self) -> None:
        genes, text = self._shown.genes, self._last()
        found = genes[[text in name.lower() for name in genes.index]] if text else genes
        if self.order.value is None:
            found = found.sort_index(key=lambda names: names.str.lower())
        else:
            found = found.sort_values(self.order.value, ascending=False, kind="stable")
        wide = max(map(len, found.index), default=0)
        self._filling = True
        self.list.options = [
            (f"{name:<{wide}} {_score(r, ceiling)}".replace(" ", "\u00a0"), name)
            for name, r, ceiling in zip(found.index, found["r"], found["ceiling"], strict=True)
        ]
        self._select()
        self.note.value = escape(f"{len(found)} of {len(genes)} genes" if len(found) else self._none_found(text))

    def _select(self) -> None:
        self._filling = True
        self.list.value = self.gene if self.gene in self.found else None
        self._filling = False

    def _none_found(self, text: str) -> str:
        table = self._shown.table
        measured = [str(name) for name in table.var_names if name.lower() == text]
        if measured:
            return f"{measured[0]} is measured but was not predicted"
        close = close_names(text, self._shown.genes.index.to_numpy())
        return "no such gene" + (f"; did you mean {', '.join(close)}?" if close else "")

    def _typed(self, _: Any) -> None:
        self._fill()
        names, text = self._shown.by_lower_case, self.search.value.strip().lower()
        label, parts = split_set(self.search.value)
        if text in names:
            self.gene = names[text]
        elif len(parts) > 1 and all(part.lower() in names for part in parts):
            self.gene = Chosen(tuple(dict.fromkeys(names[part.lower()] for part in parts)), label).text
        elif len(parts) == 1 and len(self.found) == 1:
            self.gene = self.found[0]

    def _listed(self, change: Any) -> None:
        if change["new"] is not None and not self._filling:
            self.gene = change["new"]


def _score(r: float, ceiling: float) -> str:
    if np.isnan(r):
        return ""
    return f"{r:5.2f}" + ("" if np.isnan(ceiling) else f" of {ceiling:.2f}")
