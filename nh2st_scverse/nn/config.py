"""Everything that can be set about the network and its training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Config:
    """Settings of NH2ST. The defaults are the preset ``default``; :meth:`preset` gives ``paper``.

    See Also
    --------
    nh2st_scverse.tl.train : takes its fields as keywords.

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
    fine_tune: bool = False  # the encoder is trained with the rest; else it is frozen, and features are computed once
    fields: tuple[float, ...] = (1.0, 2.5, 6.0)  # sides of the fields of view of a spot, in patches
    orientations: int = 1  # of each patch, whose features are averaged: 2 or 4 quarter turns; 8: mirrored too
    stain: str = "none"  # give sections the colours of the training sections: "reinhard", "macenko", "vahadane"
    standardise: str = "section"  # features to mean 0, variance 1 within a section, against stain; or "none"
    n_components: int | None = 256  # principal components of the features that enter the network; None: the features

    # network
    n_nodes: int = 9  # K: the spot itself and its nearest spots
    n_similar: int = 3  # nodes that a hyperedge joins to its own; 0: no hypergraph, every node by itself
    embedding: int = 256  # E
    hidden: int = 256  # width of the first hypergraph convolution
    bottleneck: int = 256  # width of the decoder
    heads: int = 4
    mlp_ratio: float = 1.0
    dropout: float = 0.4
    input_dropout: float = 0.1
    context: bool = True  # the images around a spot reach its prediction
    ridge: float = 0.5  # share of a closed-form kernel ridge on the same inputs in the prediction
    landmarks: int | None = 1000  # training spots that its kernel compares with; None: a linear ridge
    rank: int | None = 20  # principal components of the expression that it predicts; None: every gene by itself

    # loss
    mse: float = 1.0
    pearson: float = 1.0
    query_contrast: float = 1.0
    neighbour_contrast: float = 0.5
    temperature: float = 0.05
    negatives: float = 0.1  # factor of the off-diagonal similarities

    # target
    library: str = "genome"  # counts per 10,000 of all genes, or of the "panel" alone
    smooth: bool = False  # average a spot with the adjacent ones
    scale_target: bool = True  # genes to mean 0, variance 1 inside the network

    # training
    optimizer: str = "adamw"  # with one cycle of the learning rate; or "adam" with a step decay
    lr: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 128
    max_epochs: int = 60
    max_steps: int | None = 400  # large sections need fewer epochs, but 10 while that takes 4,000 steps
    n_members: int = 3  # at most; each is validated on other training groups
    patience: int = 15
    augment: bool = True  # flips and quarter turns of the patches of a trained encoder
    stain_jitter: float = 0.0  # spread of random factors of the optical density of each colour of such a patch
    encoder_lr: float = 0.1  # learning rate of a trained encoder, as a factor of lr
    half: bool = True  # a trained encoder computes in 16 bits where the device can
    compile: bool = False  # let torch.compile make faster code of encoder and network, at a start of minutes

    def __post_init__(self) -> None:
        """Check that the settings can be and fit together."""
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise ValueError(f"Expected {name} to be one of {list(options)}, found {getattr(self, name)!r}.")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"Expected {name} to be a whole number of at least {least}, found {value!r}.")
        for name in ("ridge", "dropout", "input_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Expected {name} to be between 0 and 1, found {getattr(self, name)!r}.")
        if not self.fields or min(self.fields) <= 0:
            raise ValueError(f"Expected fields to be sides above 0, in patches, found {self.fields!r}.")
        if self.embedding % self.heads:
            raise ValueError(f"Expected heads to divide embedding, found {self.heads} heads and {self.embedding}.")
        several = len(self.fields) > 1 or self.orientations > 1
        if self.fine_tune and (self.standardise != "none" or self.ridge or several):
            raise ValueError(
                "A trained encoder has one field of view, in one orientation, and features that are neither "
                "standardised beforehand nor given to a ridge: expected fields=(1.0,), orientations=1, "
                f"standardise='none' and ridge=0, found {self.fields}, {self.orientations}, {self.standardise!r} and "
                f"{self.ridge}."
            )
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
        if name not in presets:
            raise ValueError(f"Expected preset to be one of {list(presets)}, found {name!r}.")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(f"Unknown settings {unknown}. Available: {sorted(known - {'name'})}.")
        if changes.get("fine_tune"):  # what a trained encoder cannot have, and batches that fit in memory
            size = min(32, presets[name].batch_size)
            changes = {"fields": (1.0,), "standardise": "none", "ridge": 0.0, "batch_size": size} | changes
        return replace(presets[name], **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Settings from :meth:`to_dict`."""
        before = {"landmarks": None, "rank": None}  # of models that were saved before there were these
        known = {**before, **values, "name": "default", "fields": tuple(values["fields"])}
        return cls.preset(**known)._renamed(values["name"])

    def _renamed(self, name: str) -> Config:
        return replace(self, name=name)


CHOICES = {
    "orientations": (1, 2, 4, 8),
    "stain": ("none", "reinhard", "macenko", "vahadane"),
    "standardise": ("section", "none"),
    "library": ("genome", "panel"),
    "optimizer": ("adamw", "adam"),
}
LEAST = {  # a correlation and a contrast need two spots
    "n_components": 1,
    "landmarks": 1,
    "rank": 1,
    "n_nodes": 2,
    "n_similar": 0,
    "embedding": 1,
    "hidden": 1,
    "bottleneck": 1,
    "heads": 1,
    "batch_size": 2,
    "max_epochs": 1,
    "max_steps": 1,
    "n_members": 1,
    "patience": 1,
}

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
