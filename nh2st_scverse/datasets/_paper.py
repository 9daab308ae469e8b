"""The six data sets of the paper: their sections, the published folds, and folds that are safe."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
from sklearn.model_selection import KFold

from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_path, check_one_of, examples

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from nh2st_scverse.io._lazy import Read, Sections

Name = Literal["STNet", "Skin", "PCW", "Mouse", "INT", "ZEN"]
Folds = tuple[tuple[str, ...], ...]  # groups that are held out together

# in the order of the authors, which the shuffling depends on
STNET_PATIENTS = [
    f"BC{number}"
    for number in (
        *(23209, 23270, 23803, 24105, 24220, 23268, 23269, 23272, 23277, 23287, 23288, 23377),
        *(23450, 23506, 23508, 23567, 23810, 23895, 23901, 23903, 23944, 24044, 24223),
    )
]
SKIN_PITCH_UM, SKIN_SPOT_UM = 150 / np.sqrt(2), 110.0  # rows and columns of a checkerboard of 150 µm


class Split(NamedTuple):
    """What is held out together, and how the authors shuffled it into folds."""

    group: Literal["patient", "age", "slide"]
    n_folds: int | None  # None: each group in turn
    seed: int


SPLITS: dict[str, Split] = {
    "STNet": Split("patient", 8, 2021),
    "Skin": Split("patient", None, 0),
    "PCW": Split("age", None, 0),
    "Mouse": Split("slide", 4, 42),
    "INT": Split("slide", 8, 42),
    "ZEN": Split("slide", 3, 42),
}

UNRANKED = ("INT", "ZEN")  # panels with names of clones and genes of other tissues


@dataclass(frozen=True)
class Paper:
    """One of the six data sets."""

    name: str
    layout: str  # whose files they are: "original", "TRIPLEX", "STimage-1K4M", "HEST-1k"
    sections: Sections
    groups: dict[str, str]  # of each section, for `folds`
    folds: Folds  # as published
    safe_groups: dict[str, str]  # of each section, for `safe_folds`
    safe_folds: Folds  # no patient is in training and test
    genes: tuple[str, ...] | None  # the published panel, where a file gives it

    @property
    def unranked(self) -> bool:
        """Whether the published panel is not one of the most expressed genes, so that its scores say little."""
        return self.genes is not None and self.name in UNRANKED

    @property
    def leaks(self) -> bool:
        """Whether a patient is in training and test of a published fold, or may be."""
        patients = {self.groups[name]: self.safe_groups[name] for name in self.sections}
        fold = {group: i for i, groups in enumerate(self.folds) for group in groups}
        of_patient: dict[str, set[int]] = {}
        for group, patient in patients.items():
            of_patient.setdefault(patient, set()).add(fold[group])
        return any(len(folds) > 1 for folds in of_patient.values())


def paper(name: Name, root: str | os.PathLike[str]) -> Paper:
    """One of the six data sets that NH2ST was evaluated on, with the published folds.

    Parameters
    ----------
    name
        ``"STNet"`` (breast cancer, He 2020), ``"Skin"`` (carcinoma, Ji 2020), ``"PCW"`` (developing heart, Asp 2019),
        ``"Mouse"`` (olfactory bulb, Ståhl 2016), ``"INT"`` (kidney and prostate), ``"ZEN"`` (colon).
    root
        Folder of the download: of the original source (STNet, Skin), the packages of TRIPLEX (STNet, Skin: ``ST-cnts``,
        ``ST-imgs``, ``ST-spotfiles``), STimage-1K4M (Skin, PCW, Mouse) or HEST-1k (all); what it is, is found.

    Returns
    -------
    A value with ``sections`` (a mapping, read when asked for), ``groups`` and ``folds`` as published, ``safe_groups``
    and ``safe_folds`` beside them, in which no patient is in training and test, and ``genes``, the published panel
    where a file ``genes_*.npy`` gives it. They are arguments of :func:`nh2st_scverse.tl.cross_validate`. ``leaks``
    tells whether the published folds part sections of one patient, ``unranked`` that the published panel has genes that
    are hardly expressed: ``genes="highest_mean"`` then chooses others.

    What is known of patients: all of STNet, Skin, INT1 to INT24 and ZEN; of PCW the age, so whole ages are held out; of
    Mouse nothing, so that there are no safe folds.

    Raises
    ------
    FileNotFoundError
        None of these layouts, or no section of the data set in it.
    ValueError
        An unknown name; a panel that is not text.

    See Also
    --------
    nh2st_scverse.tl.cross_validate, nh2st_scverse.io.hest, nh2st_scverse.io.stimage

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> drawn = nh.datasets.synthetic(width_um=600, n_genes=20)
    >>> folder = nh.datasets.hest_folder({f"ZEN{i}": drawn for i in range(40, 44)}, path="zen")
    >>> zen = nh.datasets.paper("ZEN", folder)
    >>> zen.safe_groups["ZEN40"]
    'P7'
    """
    from nh2st_scverse.io._lazy import Sections

    check_one_of(name, get_args(Name), argument="name")
    folder = as_path(root, argument="root")
    layouts = {"TRIPLEX": _triplex, "STimage-1K4M": _stimage, "HEST-1k": _hest, "original": _original}
    layout, readers = next(((key, r) for key, find in layouts.items() if (r := find(folder, name))), ("", {}))
    if not readers:
        raise FileNotFoundError(
            f"Expected sections of {name} in {folder}, as TRIPLEX (ST-cnts, ST-imgs, ST-spotfiles), STimage-1K4M "
            "(ST/coord), HEST-1k (st, wsis) or the original source (patient/*.tsv.gz, *.jpg, *.spots.txt; "
            "*_stdata.tsv, *_spot_data-selection-*.tsv, *.jpg) have them, found "
            f"{examples(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else 'no folder'}."
        )
    split = SPLITS[name]
    patients = {section: _patient(name, section) for section in readers}
    groups = {section: section if split.group == "slide" else patients[section] for section in readers}
    folds = _folds(name, sorted(set(groups.values())), split)
    people = sorted(set(patients.values()))
    if len(people) < 2:
        logger.warning("%s: patients are not known, so there are no folds that are sure not to share one.", name)
    safe = folds if groups == patients else tuple((person,) for person in people if len(people) > 1)
    made = Paper(name, layout, Sections(readers), groups, folds, patients, safe, _panel(folder, name))
    if made.leaks:
        logger.warning(
            "%s: the published folds hold out sections, and others of the same patient, or of one that is not known, "
            "are trained on. See safe_groups and safe_folds.",
            name,
        )
    if made.unranked:
        logger.warning(
            "%s: genes of the published panel are hardly expressed. Compare with genes='highest_mean'.", name
        )
    return made


def _folds(name: str, groups: list[str], split: Split) -> Folds:
    """The groups that the authors left out together, as far as they are here."""
    if split.n_folds is None:
        return tuple((group,) for group in groups)
    if name == "STNet":
        names = STNET_PATIENTS
    elif name == "Mouse":  # file names, which end in "_coord.csv": Rep10 comes before Rep1
        names = sorted((f"Rep{i}" for i in range(1, 13)), key=lambda one: f"{one}_coord.csv")
        groups_of = {_rep(group): group for group in groups}
        names = [groups_of.get(one, one) for one in names]
    elif name == "ZEN":
        names = [f"ZEN{i}" for i in range(40, 50)]
    else:
        names = groups  # those that are present
    if len(names) < split.n_folds:
        return tuple((group,) for group in groups)
    found = []
    for _, held in KFold(split.n_folds, shuffle=True, random_state=split.seed).split(names):
        found.append(tuple(names[i] for i in held if names[i] in groups))
    if set(groups) != set(names):
        logger.warning("%s is not complete: %d of %d groups of the published folds.", name, len(groups), len(names))
    return tuple(fold for fold in found if fold)


def _rep(section: str) -> str:
    """Replicate of a slide of Mouse, in STimage-1K4M's names or HEST's."""
    hest = re.fullmatch(r"SPA(\d+)", section)
    return f"Rep{16 - int(hest[1])}" if hest else section.rpartition("_")[2]


def _patient(name: str, section: str) -> str:
    """Who a section is of, as far as it is known; of the heart, the age."""
    from nh2st_scverse.io._hest_facts import PATIENTS, SKIN_SLIDES

    if name == "PCW":
        sample = re.fullmatch(r"SPA(\d+)", section)
        if sample:
            i = int(sample[1])
            return "9PCW" if i <= 35 else "6.5PCW" if i <= 44 else "4.5-5PCW"
        return re.search(r"([\d.-]+PCW)", section)[1]  # type: ignore[index]
    if name == "Mouse":
        return "unknown"
    number = next(iter(re.findall(r"GSM\d+", section)), "")
    if section in PATIENTS or number in SKIN_SLIDES:
        return PATIENTS.get(section) or SKIN_SLIDES[number]
    found = re.search(r"BC\d{5}", section)
    return found[0] if found else "unknown"


# ---------------------------------------------------------------------------------------------------------------------
# layouts: sections of a data set, and how each is read
# ---------------------------------------------------------------------------------------------------------------------
IN_HEST: dict[str, list[str]] = {
    "STNet": [f"SPA{i}" for i in range(51, 119)],
    "Skin": [f"NCBI{i}" for i in range(759, 771)],
    "PCW": [f"SPA{i}" for i in range(30, 49)],
    "Mouse": [f"SPA{i}" for i in range(4, 16)],
    "INT": [f"INT{i}" for i in (*range(1, 29), 35)],
    "ZEN": [f"ZEN{i}" for i in range(40, 50)],
}
IN_STIMAGE = {"Skin": "GSE144239_GSM", "PCW": "Human_Heart_Asp", "Mouse": "Mouse_OlfactoryBulb_Stahl"}


def _hest(root: Path, name: str) -> dict[str, Read]:
    from nh2st_scverse.io import hest

    there = {path.stem for path in (root / "st").glob("*.h5ad")} if root.is_dir() else set()
    wanted = [one for one in IN_HEST[name] if one in there]
    samples = hest(root, wanted) if wanted else {}
    return {one: lambda one=one: samples[one] for one in wanted}  # type: ignore[misc]


def _stimage(root: Path, name: str) -> dict[str, Read]:
    from nh2st_scverse.io import stimage

    begin = IN_STIMAGE.get(name)
    files = sorted((root / "ST" / "coord").glob(f"{begin}*_coord.csv")) if begin else []
    slides = [path.name.removesuffix("_coord.csv") for path in files]
    return {one: lambda one=one: stimage(root, one) for one in slides}  # type: ignore[misc]


def _triplex(root: Path, name: str) -> dict[str, Read]:
    """``ST-cnts/<name>_sub.parquet``, ``ST-imgs``, ``ST-spotfiles/<name>_selection.tsv``."""
    if name not in ("STNet", "Skin"):
        return {}
    found: dict[str, Read] = {}
    images = [path for path in (root / "ST-imgs").rglob("*") if path.suffix.lower() in (".tif", ".jpg", ".png")]
    wanted = r"BC\d{5}" if name == "STNet" else r"GSM\d+"
    for spots in sorted((root / "ST-spotfiles").glob("*_selection.tsv")):
        section = spots.name.removesuffix("_selection.tsv")
        counts = next((p for p in sorted((root / "ST-cnts").glob(f"{section}[_.]*")) if p.is_file()), None)
        image = next((p for p in images if p.stem.removeprefix("HE_") == section), None)
        if re.match(wanted, section) and counts is not None and image is not None:
            found[section] = lambda i=image, c=counts, s=spots, n=section: _legacy(i, c, s, n, name)  # type: ignore[misc]
    return found


def _original(root: Path, name: str) -> dict[str, Read]:
    """``<subtype>/<patient>/<patient>_<section>.jpg``, ``.tsv.gz``, ``.spots.txt``; of Skin the files of GEO."""
    places = {"STNet": "*.spots.txt", "Skin": "GSM*_spot_data-selection-*.tsv*"}
    found: dict[str, Read] = {}
    for spots in sorted(root.rglob(places[name])) if name in places else ():
        section = re.sub(r"\.spots\.txt$|spot_data-selection-|\.tsv(\.gz)?$", "", spots.name)
        ends = [".tsv.gz", ".tsv"] if name == "STNet" else ["_stdata.tsv.gz", "_stdata.tsv"]
        counts = next((p for end in ends if (p := spots.with_name(section + end)).is_file()), None)
        image = spots.with_name(f"{section}.jpg")
        if counts is not None and image.is_file():
            found[section] = lambda i=image, c=counts, s=spots, n=section: _legacy(i, c, s, n, name)  # type: ignore[misc]
    return found


def _legacy(image: Path, counts: Path, spots: Path, section: str, name: str) -> SpatialData:
    import pandas as pd

    from nh2st_scverse.io import spatial_transcriptomics

    skin = name == "Skin"
    return spatial_transcriptomics(
        image,
        pd.read_parquet(counts) if counts.suffix == ".parquet" else counts,
        spots,
        section=section,
        spot_pitch=SKIN_PITCH_UM if skin else 200.0,
        spot_diameter=SKIN_SPOT_UM if skin else 100.0,
    )


def _panel(root: Path, name: str) -> tuple[str, ...] | None:
    """The panel in a file that is named after the data set, or in the only one."""
    files = sorted(root.glob("genes_*.npy"))
    files = [file for file in files if name.lower() in file.stem.lower()] or files
    if len(files) != 1:
        if files:
            logger.warning("%s: no panel is read; which of %s is it?", name, [file.name for file in files])
        return None
    try:
        genes = np.load(files[0], allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{files[0]} is pickled, which may run code when it is read: write it anew with "
            "np.save(path, np.array(list_of_genes, dtype=str))."
        ) from error
    return tuple(map(str, genes))
