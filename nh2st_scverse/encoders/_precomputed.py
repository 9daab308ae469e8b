"""Features that were computed elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

PREFIX = "precomputed:"


@dataclass
class Precomputed:
    """Features that the object holds already, in the place of an encoder.

    Parameters
    ----------
    key
        A key of the table's ``.obsm``, row by row; or a table of the object whose X holds the features, as LazySlide
        and wsidata write them (``"uni_tiles"``). Its rows are matched by instance id if it annotates the spots, else by
        their names. The name ``"precomputed:<key>"`` stands for it too. A model that was trained on one key can be
        given another one, ``nh.tl.predict_expression(slide, model=model, encoder="precomputed:uni_tiles",
        table_added="predicted")``; that both come from the same encoder is for you to know.

    See Also
    --------
    Encoder : compute them from patches.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> sdata["table"].obsm["X_uni"] = np.random.default_rng(0).normal(size=(sdata["table"].n_obs, 16))
    >>> model = nh.tl.train(sdata, encoder=nh.encoders.Precomputed("X_uni"), n_genes=5, max_epochs=1, progress=False)
    >>> model.encoder
    'precomputed:X_uni'
    """

    key: str
    name: str = field(init=False)
    input_size: int = field(default=1, init=False)
    dim: int = field(default=0, init=False)  # what is found
    weights_hash: str = field(default="precomputed", init=False)

    def __post_init__(self) -> None:
        """Name it by its key."""
        self.name = PREFIX + self.key

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Nothing is computed."""
        raise TypeError(f"Features {self.key!r} are looked up in the object, not computed from patches.")
