"""The card of a model at a hub: what it was made from and what may be expected of it, as Markdown for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from nh2st_scverse.model.card import held_out_tissue

if TYPE_CHECKING:
    from nh2st_scverse.model.nh2st import NH2ST

TAGS = ["spatial-transcriptomics", "histopathology", "h-and-e", "gene-expression", "scverse"]
PAPER = "https://arxiv.org/abs/2506.23827"

TEXT = """\
---
{front}
---

# {name}

Predicts the expression of {n_genes} genes at each spot or place of an H&E image. Trained with `nh2st-scverse`, which
builds on the method of [Qu et al., 2025]({paper}). Written by `model.push_to_hub` from what the model records.
{notes}
## Load and predict

```python
import nh2st_scverse as nh

model = nh.NH2ST.load("hf://{name}")
nh.tl.predict_expression(sdata, model=model{options})  # sdata: a SpatialData object with an H&E image
```

The image encoder {encoder} (weights {encoder_hash}) {holds}.

## Trained on

{n_sections} section(s), by group (patient, animal or slide, where the authors named them):

{sections}

{grouped}A model does not record organ, species, staining, scanner, or the terms of its training data: unless the
authors tell above, they are not known here.{interrupted}

## Scores on held-out tissue

Mean Pearson correlation over the spots that a predictor never saw, averaged over the training sections: {scores}.

These scores are of {held_out}. No section from outside the training set is in them.

## Genes

The panel, best first, with the correlation of each gene ("not known": it could not be scored):

```text
{genes}
```

## Use and limits

- For research. Not a medical device: nothing here was validated for diagnosis or treatment.
- For H&E images of tissue like that of the training sections. What it does on other organs, stains, scanners or
  laboratories is not known. {novelty} tells how unlike the training tissue a section is.
- Patches of {patch_um:g} µm; spots of the training sections lie {spacing_um:g} µm apart.
- Unit of the predictions: {unit}. They are estimates from an image and no counts: not for tests that expect counts.
- A gene with a low or unknown score above should not be read spot by spot.

## Versions

Model `{identifier}`, preset {preset}, {n_members} member(s), seed {seed}. {packages}

## Licence

{licence}
"""


def readme(model: NH2ST, name: str, licence: str | None, notes: str) -> str:
    """The text of ``README.md``, with the front matter that the hub reads."""
    from huggingface_hub import ModelCardData

    card, pearson = model.card, model.scores["pearson"]
    front = ModelCardData(library_name="nh2st-scverse", license=licence or "unknown", tags=TAGS)
    return TEXT.format(
        front=front.to_yaml(),
        name=name,
        n_genes=len(model.genes),
        paper=PAPER,
        notes=f"\n## From the authors\n\n{notes.strip()}\n" if notes.strip() else "",
        options=", uncertainty=True" if model.trust.residuals is not None else "",
        novelty="`uncertainty=True`" if model.trust.residuals is not None else "`model.likeness`",
        encoder=_code(card.encoder),
        encoder_hash=_code(card.encoder_hash),
        holds="was trained too, and its weights are among these files: its terms hold for them as well"
        if model.config.fine_tune
        else "is no part of these files and has terms of its own; one that is an object of the authors is passed as "
        "`encoder=`",
        n_sections=len(card.trained_on),
        sections=_sections(card.trained_on),
        grouped="Each section is a group of its own: whether some are of one patient, animal or slide was not told.\n\n"
        if len(card.trained_on) > 1 and all(section == group for section, group in card.trained_on.items())
        else "",
        interrupted=" The training was interrupted before its end." if card.interrupted else "",
        scores=_scores(pearson),
        held_out=held_out_tissue(card.trained_on),
        genes="\n".join(_genes(pearson)),
        patch_um=card.patch_um,
        spacing_um=card.spacing_um,
        unit=card.unit,
        identifier=model.identifier,
        preset=_code(model.config.name),
        n_members=len(model.members),
        seed=card.seed,
        packages="Trained with " + ", ".join(f"{name} {version}" for name, version in card.packages.items()) + "."
        if card.packages
        else "With which versions it was trained is not known.",
        licence=f"`{licence}`, for these files. Terms of the training data and of the image encoder stay as they are."
        if licence
        else "Not stated: ask the authors before using or passing on these files.",
    )


def _code(text: str) -> str:
    """As it is, whatever Markdown would make of it."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def _sections(trained_on: dict[str, str]) -> str:
    by_group: dict[str, list[str]] = {}
    for section, group in trained_on.items():
        by_group.setdefault(group, []).append(_code(section))
    return "\n".join(f"- group {_code(group)}: {', '.join(sections)}" for group, sections in by_group.items())


def _scores(pearson: pd.Series) -> str:
    known = pearson.dropna()
    if known.empty:
        return "not known, as no tissue was left to hold out"
    return (
        f"**{known.mean():.3f}** (median {known.median():.3f}, from {known.min():.3f} to {known.max():.3f}, "
        f"{len(known)} of {len(pearson)} genes)"
    )


def _genes(pearson: pd.Series) -> Iterable[str]:
    for gene, r in pearson.sort_values(ascending=False, kind="stable").items():  # those not known last
        yield f"{' '.join(str(gene).replace('`', chr(39)).split())}  {'not known' if pd.isna(r) else f'{r:.3f}'}"
