"""The progress bar of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_only
from tqdm.auto import tqdm


@contextmanager
def progress_bar(name: str, show: bool) -> Iterator[Callable[..., None]]:
    """One line for a whole training: epochs, time left at most, terms of the loss, correlation on held-out tissue."""
    show = show and getattr(rank_zero_only, "rank", 0) == 0  # of several processes one tells
    with tqdm(desc=name, unit="epoch", mininterval=0.5, dynamic_ncols=True, disable=not show) as bar:

        def on_epoch(row: dict[str, float], epochs: int, member: int, members: int) -> None:
            # earlier members may have stopped early: what is left is that of this one and of those to come
            bar.total = bar.n + int(epochs - row["epoch"]) + (members - member - 1) * epochs
            terms = {k: v for k, v in row.items() if k not in ("epoch", "loss", "validation_pearson")}
            said = [f"{k.replace('_contrast', '').replace('pearson', '1 - pearson')} {v:.2f}" for k, v in terms.items()]
            bar.set_postfix_str(
                f"member {member + 1}/{members}, {', '.join(said)}, held-out r {row['validation_pearson']:.3f}",
                refresh=False,
            )
            bar.update()

        yield on_epoch
