"""What a model tells beside the prediction: how far it may be off, how familiar the tissue is, and its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nh2st_scverse.train.trust import Novelty, Residuals

N_EMBEDDING = 50
MOST_SPOTS = 50_000  # spots that tell what varies together
COMPONENTS, RESIDUALS, NOVELTY = "components", "residuals", "novelty"  # names of the arrays of a saved model


@dataclass(frozen=True)
class Trust:
    """Residuals and novelty, None where they are not known, and the basis of the embedding."""

    components: np.ndarray  # (G, n)
    residuals: Residuals | None = None
    novelty: Novelty | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """What to keep of it."""
        kept = {COMPONENTS: self.components}
        if self.residuals is not None:
            kept[RESIDUALS] = self.residuals.array()
        if self.novelty is not None:
            kept |= {f"{NOVELTY}.{name}": values for name, values in self.novelty.arrays().items()}
        return kept

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Trust:
        """Read :meth:`arrays`."""
        familiar = {k.removeprefix(f"{NOVELTY}."): v for k, v in arrays.items() if k.startswith(f"{NOVELTY}.")}
        return cls(
            components=arrays[COMPONENTS],
            residuals=Residuals.of(arrays[RESIDUALS]) if RESIDUALS in arrays else None,
            novelty=Novelty.of(familiar) if familiar else None,
        )


def principal_genes(predicted: np.ndarray) -> np.ndarray:
    """Basis (G, n) of the embedding: what varies together in predictions (N, G) scaled to variance 1 by gene."""
    predicted = predicted[:: -(-len(predicted) // MOST_SPOTS)] if len(predicted) else predicted
    scale = predicted.std(axis=0) + 1e-6
    _, _, basis = np.linalg.svd((predicted - predicted.mean(axis=0)) / scale, full_matrices=False)
    return (basis[:N_EMBEDDING].T / scale[:, None]).astype(np.float32)
