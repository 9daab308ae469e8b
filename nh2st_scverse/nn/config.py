"""Everything that can be set about the network and its training."""
# ruff: noqa: RUF009 (a setting is a field of a dataclass)

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints

Preset = Literal["default", "paper"]
Orientations = Literal[1, 2, 4, 8]
Maps = Literal["none", "wide", "all"]
Stain = Literal["none", "reinhard", "macenko", "vahadane"]
Standardise = Literal["ranks", "section", "none"]
Library = Literal["genome", "panel"]
Optimizer = Literal["adamw", "adam"]
Kernel = Literal["laplacian", "gaussian"]


class Settings(TypedDict, total=False):
    """The settings as keywords, ``**settings: Unpack[Settings]``: those of :class:`Config`, without its name."""

    fine_tune: bool
    fields: tuple[float, ...]
    orientations: Orientations
    maps: Maps
    stain: Stain
    standardise: Standardise
    n_components: int | None
    n_nodes: int
    n_similar: int
    embedding: int
    hidden: int
    bottleneck: int
    heads: int
    mlp_ratio: float
    dropout: float
    input_dropout: float
    context: bool
    ridge: float
    landmarks: int | None
    kernel: Kernel
    metric: int
    spread: bool
    fallback: bool
    rank: int | None
    mse: float
    pearson: float
    query_contrast: float
    neighbour_contrast: float
    temperature: float
    negatives: float
    library: Library
    smooth: bool
    scale_target: bool
    optimizer: Optimizer
    lr: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    max_steps: int | None
    n_members: int
    patience: int
    augment: bool
    stain_jitter: float
    encoder_lr: float
    half: bool
    compile: bool


def _setting(default: Any, doc: str, *, least: float = -math.inf, above: float = -math.inf, **most: float) -> Any:
    """A field with its default, what it is, and its domain: from `least`, or `above`, to `most`, or `below`."""
    return field(default=default, metadata={"doc": doc, "domain": {"least": least, "above": above, **most}})


@dataclass(frozen=True)
class Config:
    """Settings of NH2ST. The defaults are the preset ``default``; :meth:`preset` gives ``paper``.

    See Also
    --------
    nh2st_scverse.tl.train : takes its fields as keywords, and explains each.

    Examples
    --------
    >>> from nh2st_scverse.nn import Config
    >>> Config.preset("paper").embedding
    512
    >>> Config.preset("default", dropout=0.5).dropout
    0.5
    """

    name: str = "default"

    # images
    fine_tune: bool = _setting(
        False, "train the encoder with the rest; else it is frozen, and features are computed once"
    )
    fields: tuple[float, ...] = _setting(
        (1.0, 2.5, 6.0), "sides of the fields of view of a spot, in patches", least=0.1, most=100
    )
    orientations: Orientations = _setting(
        1, "of each patch, whose features are averaged: 2 or 4 quarter turns; 8: mirrored too"
    )
    maps: Maps = _setting(
        "none",
        "which fields of view are encoded once for all places, from maps of the tissue or between patches on a "
        "lattice: those of 2 patches or more, or all (for dense maps); else each spot has its own patches",
    )
    stain: Stain = _setting("none", "give sections the colours of the training sections, by this method")
    standardise: Standardise = _setting(
        "ranks",
        "features within a section to the places of their ranks in a normal distribution, or to mean 0 and variance 1, "
        "against differences of stain",
    )
    n_components: int | None = _setting(
        256, "principal components of the features that enter the network; None: the features", least=1
    )

    # network
    n_nodes: int = _setting(9, "nodes of a neighbourhood: the spot itself and its nearest spots", least=2)
    n_similar: int = _setting(
        3, "nodes that a hyperedge joins to its own; 0: no hypergraph, every node by itself", least=0
    )
    embedding: int = _setting(256, "width of what a node becomes; a multiple of heads", least=1)
    hidden: int = _setting(256, "width of the first hypergraph convolution", least=1)
    bottleneck: int = _setting(256, "width of the decoder", least=1)
    heads: int = _setting(4, "heads of the attention", least=1)
    mlp_ratio: float = _setting(1.0, "width inside the attention blocks, as a factor of embedding", above=0)
    dropout: float = _setting(0.4, "share of the values inside the network left out in training", least=0, below=1)
    input_dropout: float = _setting(0.1, "share of its inputs left out in training", least=0, below=1)
    context: bool = _setting(True, "let the images around a spot reach its prediction")
    ridge: float = _setting(
        0.6, "share of a closed-form kernel ridge on the same inputs in the prediction", least=0, most=1
    )
    landmarks: int | None = _setting(
        1000, "training spots that its kernel compares with; None: a linear ridge", least=1
    )
    kernel: Kernel = _setting("laplacian", "of the ridge: shares of likeness, which do not fade far away, or gaussian")
    metric: int = _setting(
        2, "rounds in which the kernel learns how much each difference between spots counts; 0: all alike", least=0
    )
    spread: bool = _setting(False, "let the ridge see how much the images around a spot differ, beside their mean")
    fallback: bool = _setting(True, "where a section is unlike the training tissue: ridges alone, a linear one too")
    rank: int | None = _setting(
        20, "principal components of the expression that it predicts; None: every gene by itself", least=1
    )

    # loss
    mse: float = _setting(1.0, "weight of the squared error", least=0)
    pearson: float = _setting(1.0, "weight of one minus the correlation", least=0)
    query_contrast: float = _setting(1.0, "weight of the contrast between image and genes of a spot", least=0)
    neighbour_contrast: float = _setting(0.5, "weight of that between image and genes of its neighbours", least=0)
    temperature: float = _setting(0.05, "of both contrasts", least=1e-3)
    negatives: float = _setting(0.1, "factor of the similarities of different spots in them", least=0)

    # target
    library: Library = _setting("genome", "counts per 10,000 of all genes, or of the panel alone")
    smooth: bool = _setting(False, "average a spot with the adjacent ones in training")
    scale_target: bool = _setting(True, "genes to mean 0, variance 1 inside the network")

    # training
    optimizer: Optimizer = _setting("adamw", '"adamw" with one cycle of the learning rate, or "adam" with a step decay')
    lr: float = _setting(1e-3, "learning rate", above=0, most=1)
    weight_decay: float = _setting(1e-2, "of AdamW", least=0)
    batch_size: int = _setting(128, "spots of a step; a contrast needs two", least=2)
    max_epochs: int = _setting(60, "passes over the training spots at most", least=1)
    max_steps: int | None = _setting(
        400,
        "large sections get fewer epochs, but 10 if ten times the steps allow it; None: no limit",
        least=1,
    )
    n_members: int = _setting(3, "networks at most; each is validated on other training groups", least=1)
    patience: int = _setting(15, "epochs without a better one after which a member stops", least=1)
    augment: bool = _setting(True, "flips and quarter turns of the patches of a trained encoder")
    stain_jitter: float = _setting(
        0.0, "spread of random factors of the optical density of each colour of such a patch", least=0, most=1
    )
    encoder_lr: float = _setting(0.1, "learning rate of a trained encoder, as a factor of lr", least=0)
    half: bool = _setting(True, "let a trained encoder compute in 16 bits where the device can")
    compile: bool = _setting(False, "let torch.compile make faster code of encoder and network, at a start of minutes")

    def __post_init__(self) -> None:
        """Check that the settings can be and fit together; hold them as plain Python values."""
        for one in fields(self):
            if one.metadata:
                value = _checked(one.name, getattr(self, one.name), TYPES[one.name], one.metadata["domain"])
                object.__setattr__(self, one.name, value)
        if self.embedding % self.heads:
            raise ValueError(f"Expected heads to divide embedding, found {self.heads} heads and {self.embedding}.")
        if self.embedding * self.mlp_ratio < 1:
            raise ValueError(f"Expected mlp_ratio to leave a width of at least 1, found {self.mlp_ratio}.")
        if not self.mse and not self.pearson and self.ridge < 1:
            raise ValueError("Expected mse or pearson above 0, found 0 for both: the prediction would not be trained.")
        several = len(self.fields) > 1 or self.orientations > 1
        if self.fine_tune and (self.standardise != "none" or self.ridge or several):
            raise ValueError(
                "A trained encoder has one field of view, in one orientation, and features that are neither "
                "standardised beforehand nor given to a ridge: expected fields=(1.0,), orientations=1, "
                f"standardise='none' and ridge=0, found {self.fields}, {self.orientations}, {self.standardise!r} and "
                f"{self.ridge}."
            )
        if self.fine_tune and self.maps != "none":
            raise ValueError(f"A trained encoder sees patches: expected maps='none', found {self.maps!r}.")
        if self.ridge and not self.scale_target:
            raise ValueError("The ridge predicts the scaled target: expected scale_target=True or ridge=0.")

    @classmethod
    def preset(cls, name: str = "default", **changes: Any) -> Config:
        """Settings by name, with changes.

        Parameters
        ----------
        name
            ``"default"``, or ``"paper"``: the network and its training as published.
        changes
            Fields to set otherwise.

        Returns
        -------
        The settings.

        Raises
        ------
        ValueError
            Unknown preset or field, or settings that cannot be or do not fit together.
        """
        presets = {"default": cls(), "paper": PAPER}
        if not isinstance(name, str) or name not in presets:
            raise ValueError(f"Expected preset to be one of {list(presets)}, found {name!r}.")
        known = sorted(TYPES)
        unknown = sorted(set(changes) - set(known))
        if unknown:
            similar = [found for one in unknown for found in difflib.get_close_matches(one, known, n=2)]
            hint = f" Similar: {similar}." if similar else ""
            raise ValueError(f"Unknown settings {unknown}. Available: {known}.{hint}")
        if changes.get("fine_tune") is True:  # what a trained encoder cannot have, and batches that fit in memory
            size = min(32, presets[name].batch_size)
            changes = {"fields": (1.0,), "standardise": "none", "ridge": 0.0, "batch_size": size} | changes
        return replace(presets[name], **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Settings from :meth:`to_dict`."""
        # of models that were saved before there were these
        before = {"landmarks": None, "rank": None, "kernel": "gaussian", "metric": 0, "spread": False}
        before |= {"fallback": False, "maps": "none"}
        known = {k: v for k, v in {**before, **values}.items() if k != "name"}
        return replace(cls.preset(**known), name=values["name"])


TYPES = {name: kind for name, kind in get_type_hints(Config).items() if name != "name"}


def _checked(name: str, value: Any, kind: Any, domain: dict[str, float]) -> Any:
    """A setting as a plain Python value of its type.

    Raises
    ------
    ValueError
        It is of another type, or out of its domain.
    """
    found = f"found {value!r}."
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if get_origin(kind) is Literal:
        options = list(get_args(kind))
        if not any(type(value) is type(option) and value == option for option in options):
            raise ValueError(f"Expected {name} to be one of {options}, {found}")
        return value
    if type(None) in get_args(kind):
        if value is None:
            return None
        kind = next(one for one in get_args(kind) if one is not type(None))
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"Expected {name} to be True or False, {found}")
        return value
    if get_origin(kind) is tuple:
        several = not isinstance(value, str | bytes) and hasattr(value, "__len__") and not isinstance(value, dict | set)
        sides = list(value) if several else []
        if not sides or not all(_is_within(side, domain) for side in sides):
            raise ValueError(f"Expected {name} to be sides above 0, {_range(domain)} patches each, {found}")
        return tuple(float(side) for side in sides)
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not _is_within(value, domain):
            raise ValueError(f"Expected {name} to be a whole number {_range(domain)}, {found}")
        return int(value)
    if not _is_within(value, domain):
        wanted = f"a number {_range(domain)}".replace("a number between", "between")
        raise ValueError(f"Expected {name} to be {wanted}, {found}")
    return float(value)


def _is_within(value: Any, domain: dict[str, float]) -> bool:
    """Whether it is a finite number in a domain."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return False
    number = float(value)
    inside = domain["least"] <= number <= domain.get("most", math.inf)
    return inside and domain["above"] < number < domain.get("below", math.inf)


def _range(domain: dict[str, float]) -> str:
    """A domain in words."""
    low, high = domain["least"], domain.get("most")
    if math.isfinite(low) and high is not None:
        return f"between {low:g} and {high:g}"
    said = [f"of at least {low:g}"] if math.isfinite(low) else []
    said += [f"above {domain['above']:g}"] if math.isfinite(domain["above"]) else []
    said += [f"at most {high:g}"] if high is not None else []
    said += [f"below {domain['below']:g}"] if "below" in domain else []
    return " and ".join(said)


PAPER = Config(
    name="paper",
    fine_tune=True,
    fields=(1.0,),
    standardise="none",
    n_components=None,
    embedding=512,
    hidden=1024,
    heads=8,
    dropout=0.5,
    input_dropout=0.0,
    context=False,
    ridge=0.0,
    pearson=0.0,
    library="panel",
    smooth=True,
    scale_target=False,
    optimizer="adam",
    lr=5e-4,
    weight_decay=0.0,
    batch_size=8,
    max_epochs=200,
    max_steps=None,
    patience=20,
    encoder_lr=1.0,
)


def settings_docs() -> str:
    """What each setting is, its values and its defaults: a list for docstrings."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    default = Config()
    for one in fields(Config):
        if not one.metadata:
            continue
        kind, value, published = TYPES[one.name], getattr(default, one.name), getattr(PAPER, one.name)
        choices = ", one of " + ", ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else ""
        domain = "" if choices or kind is bool else f", {_range(one.metadata['domain'])}"
        presets = repr(value) if value == published else f'{value!r}, preset "paper" {published!r}'
        yield f"- ``{one.name}`` ({presets}{choices}{domain}): {one.metadata['doc']}."
