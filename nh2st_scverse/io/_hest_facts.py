"""What is known of samples of HEST-1k beyond their table, or against it."""

from __future__ import annotations

STNET_PATIENTS = [  # of SPA51 to SPA118, three sections each
    f"BC{number}"
    for number in (
        23803,
        23377,
        23288,
        23209,
        23895,
        23508,
        23506,
        23277,
        23270,
        24223,
        23272,
        23269,
        23268,
        24105,
        24044,
        23903,
        23810,
        23567,
        24220,
        23944,
        23901,
        23450,
        23287,
    )
]
ZEN_PATIENTS = {
    "P1": (48, 49),
    "P2": (46, 47),
    "P3": (44, 45),
    "P4": (39, 43),
    "P5": (38, 42),
    "P6": (37, 41),
    "P7": (36, 40),
}
SKIN_PATIENTS = {"P10": range(759, 762), "P9": range(762, 765), "P5": range(765, 768), "P2": range(768, 771)}
HER2_PATIENTS = {
    "A": range(149, 155),
    "B": range(143, 149),
    "C": range(137, 143),
    "D": range(131, 137),
    "E": range(128, 131),
    "F": range(125, 128),
    "G": range(122, 125),
    "H": range(119, 122),
}


def _patients() -> dict[str, str]:
    found = {"TENX147": "Patient 5", "TENX148": "Patient 2", "TENX149": "Patient 1"}
    first = 51
    for patient in STNET_PATIENTS:
        n = 2 if patient == "BC23901" else 3
        found |= {f"SPA{i}": patient for i in range(first, first + n)}
        first += n
    found |= {f"INT{i}": f"Patient {25 - i}" for i in range(1, 25)}
    for prefix, table in (("ZEN", ZEN_PATIENTS), ("NCBI", SKIN_PATIENTS), ("SPA", HER2_PATIENTS)):
        found |= {f"{prefix}{i}": patient for patient, numbers in table.items() for i in numbers}
    return found


PATIENTS = _patients()
"""Patients of samples whose table leaves them blank, or has them wrong."""

SKIN = frozenset(f"NCBI{i}" for i in range(759, 771))
"""Arrays of 110 µm spots at 150 µm, whose table has the two numbers exchanged."""

HEART = frozenset(f"SPA{i}" for i in range(30, 49))
"""Names of spots that lack their row: those of one column share a name."""

KNOWN = {
    "NCBI784": "its spots do not fit its picture (HEST issue 59), and were pooled at 58 µm, not 100",
    "TENX122": "its pseudo-spots are not of 100 µm (HEST issue 122)",
    "TENX128": "it is the same tissue as TENX155 (HEST issue 126): leave one of them out",
    "TENX155": "it is the same tissue as TENX128 (HEST issue 126): leave one of them out",
    "TENX158": "its µm per pixel is off by ten in some versions (HEST issue 106)",
    "TENX99": "its stated values of µm per pixel contradict each other (HEST issue 106)",
} | {
    f"TENX{i}": "its patient is in doubt: TENX153 to TENX156 are all called Patient 1 (HEST issue 126)"
    for i in (153, 154, 156)
}
"""What was reported of single samples."""

SKIN_SLIDES = {f"GSM{4284316 + i}": ("P2", "P5", "P9", "P10")[i // 3] for i in range(12)}
"""Patients of the same arrays by their numbers in GEO, as STimage-1K4M and the original source call them."""

SKIN_ARRAY = (150.0, 110.0)
"""Distance between adjacent spots, and width of one, in µm."""
