"""The names under which a prediction is written: the only place that makes them."""

from __future__ import annotations

from dataclasses import dataclass

from nh2st_scverse._constants import KEY, LEVELS, SCORES

Place = tuple[str, str]
"""A place of a table (``"layers"``, ``"var"``, ``"obs"``, ``"obsm"``, ``"uns"``) and a name in it."""


@dataclass(frozen=True)
class Keys:
    """Names of everything that belongs to the prediction `key`; an empty `key` has none."""

    key: str = KEY

    # written by tl.predict_expression

    @property
    def layer(self) -> str:
        """``layers``: the predicted values."""
        return self.key

    @property
    def predicted_gene(self) -> str:
        """``var``: whether the gene is predicted."""
        return self.key

    @property
    def about(self) -> str:
        """``uns``: where the prediction comes from."""
        return self.key

    @property
    def pearson(self) -> str:
        """``var``: correlation of the gene on tissue that its predictor never saw."""
        return f"{self.key}_pearson"

    @property
    def predicted(self) -> str:
        """``obs``: whether the spot is predicted."""
        return f"{self.key}_predicted"

    @property
    def border(self) -> str:
        """``obs``: the patch of the spot reaches over the border of the image."""
        return f"{self.key}_border"

    @property
    def embedding(self) -> str:
        """``obsm``: the prediction on the axes along which it varies."""
        return f"X_{self.key}"

    @property
    def std(self) -> str:
        """``layers``: standard deviation of each prediction."""
        return f"{self.key}_std"

    @property
    def novelty(self) -> str:
        """``obs``: how unlike the training tissue the spot looks."""
        return f"{self.key}_novelty"

    def z(self, level: float) -> str:
        """``var``: standard deviations on either side that hold this share of the measured values."""
        return f"{self.key}_z{100 * level:.0f}"

    # written by tl.evaluate and tl.biology

    def evaluated(self, score: str) -> str:
        """``var``: a score of the gene against the measured values of this table."""
        return f"{self.key}_evaluated_pearson" if score == "pearson" else f"{self.key}_{score}"

    @property
    def ceiling(self) -> str:
        """``var``: the highest correlation that counting noise allows."""
        return self.evaluated("ceiling")

    @property
    def scores(self) -> str:
        """``uns``: means of the scores of :func:`nh2st_scverse.tl.evaluate`."""
        return f"{self.key}_scores"

    @property
    def moran(self) -> str:
        """``uns``: Moran's I of every gene, from :func:`nh2st_scverse.tl.biology`."""
        return f"{self.key}_moran"

    @property
    def modules(self) -> str:
        """``obsm``: predicted values of sets of genes, from :func:`nh2st_scverse.tl.modules`; ``uns``: their number."""
        return f"{self.key}_modules"

    # all of them

    @property
    def of_prediction(self) -> tuple[Place, ...]:
        """What every prediction writes into a table that has measured values too."""
        return (
            ("layers", self.layer),
            ("var", self.predicted_gene),
            ("var", self.pearson),
            ("obs", self.predicted),
            ("obs", self.border),
            ("obsm", self.embedding),
            ("uns", self.about),
        )

    @property
    def of_uncertainty(self) -> tuple[Place, ...]:
        """What a prediction with its uncertainty writes beside it."""
        widths = tuple(("var", self.z(level)) for level in LEVELS)
        return (("layers", self.std), ("obs", self.novelty), *widths)

    @property
    def of_evaluation(self) -> tuple[Place, ...]:
        """What :func:`nh2st_scverse.tl.evaluate` writes."""
        return (*(("var", self.evaluated(score)) for score in (*SCORES, "ceiling")), ("uns", self.scores))

    @property
    def of_biology(self) -> tuple[Place, ...]:
        """What :func:`nh2st_scverse.tl.biology` writes."""
        return (("uns", self.moran),)

    @property
    def of_modules(self) -> tuple[Place, ...]:
        """What :func:`nh2st_scverse.tl.modules` writes."""
        return (("obsm", self.modules), ("uns", self.modules))

    @property
    def places(self) -> tuple[Place, ...]:
        """Every name that belongs to the key."""
        return (
            *self.of_prediction,
            *self.of_uncertainty,
            *self.of_evaluation,
            *self.of_biology,
            *self.of_modules,
        )
