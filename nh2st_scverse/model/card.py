"""What a model was made from, and what it expects."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import version
from typing import Any

from nh2st_scverse import __version__

PACKAGES = ("torch", "timm", "spatialdata", "anndata", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {"nh2st-scverse": __version__} | {name: version(name) for name in PACKAGES}


def held_out_tissue(groups: Mapping[str, str]) -> str:
    """What scores on held-out tissue are about, in words, of sections with these groups."""
    names, others = list(dict.fromkeys(groups.values())), "nothing is said of other patients, animals or slides"
    if len(groups) == 1:
        return f"blocks of one section; {others}"
    if len(names) == 1:
        return f"blocks of {len(groups)} sections of one group, {names[0]!r}; {others}"
    if all(section == group for section, group in groups.items()):
        return f"whole sections; where they are of one patient, animal or slide, {others} (groups= names them)"
    return f"whole groups: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model was made from, and what it expects of the sections it predicts."""

    unit: str  # of the predictions
    patch_um: float  # side of the patch of a spot
    spacing_um: float  # between adjacent spots of the training sections
    encoder: str
    encoder_hash: str  # of its weights
    encoder_dim: int
    patch_px: int  # side of a patch at the input of the encoder
    stain: dict[str, Any] | None = None  # the colours that sections take before they are encoded
    trained_on: dict[str, str]  # training sections, and the group of each
    spot_um: float = 0.0  # width of the places at which expression was measured; 0: saved before it was kept
    tissue: dict[str, list[str]] = field(default_factory=dict)  # marks of some spots of each, to know it again
    seed: int = 0
    interrupted: bool = False  # the user stopped the training before its end
    packages: dict[str, str] = field(default_factory=package_versions)  # with which it was trained

    def __post_init__(self) -> None:
        """Hold plain values of its own: what the caller does to theirs changes nothing here."""
        plain = {
            "patch_um": float,
            "spacing_um": float,
            "spot_um": float,
            "encoder_dim": int,
            "patch_px": int,
            "seed": int,
        }
        for one in fields(self):
            value = getattr(self, one.name)
            object.__setattr__(self, one.name, plain.get(one.name, deepcopy)(value))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        if not self.spot_um:  # as earlier versions wrote it: the same model has the same identifier
            del values["spot_um"]
        if not self.tissue:  # the same
            del values["tissue"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Card:
        """Read :meth:`to_json`.

        Raises
        ------
        ValueError
            A value is lacking, or one of an unknown name is there.
        """
        known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls)}
        lacking = [name for name, needed in known.items() if needed and name not in values]
        unknown = [name for name in values if name not in known]
        if lacking or unknown:
            raise ValueError(f"Expected a card with {list(known)}, found none of {lacking} and unknown {unknown}.")
        return cls(**values)
