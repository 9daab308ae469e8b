"""The trained model a user holds: predict, save, load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from nh2st_scverse._options import as_folder
from nh2st_scverse._validators import as_path
from nh2st_scverse.data.feature_cache import PART, release
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.model import hub
from nh2st_scverse.model.card import Card, held_out_tissue
from nh2st_scverse.model.readme import readme
from nh2st_scverse.model.saved import identifier, read, write
from nh2st_scverse.model.trust import Trust
from nh2st_scverse.nn import Config, Member
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.likeness import likeness
from nh2st_scverse.train.task import Part, attend_parts, predict_parts
from nh2st_scverse.train.tensors import Tensors, components, stack
from nh2st_scverse.train.trust import Novelty, Residuals

T = TypeVar("T")
N_NAMED = 4  # genes and sections that a summary names


OWNER = {one.name: "card" for one in fields(Card)} | {one.name: "trust" for one in fields(Trust)}
COPIED = ("genes", "scores")  # when read: a user sorts them, and values are matched to them by their places


class NH2ST:
    """A trained model: predicts the expression of its gene panel from images.

    Make one with :func:`nh2st_scverse.tl.train` or :meth:`load`. It is an ensemble: each member is trained without
    some of the training groups (patients, sections, or blocks of tissue), which decide when its training stops. All
    groups train, and every gene has a score on tissue that its predictor never saw.

    Attributes
    ----------
    genes
        The panel, in the order of the predictions.
    config
        Settings of the network and its training.
    history
        One row for each member and epoch: terms of the loss, and the Pearson correlation on the held-out group.
    scores
        For each gene ``pearson``, its correlation over held-out spots, averaged over the training sections. NaN where
        one group of small sections leaves no tissue to score on.
    unit
        Unit of the predictions.
    patch_um
        Side of the patch of a spot, in µm.
    spacing_um
        Distance between adjacent spots of the training sections, in µm.
    encoder
        Name of the image encoder.
    encoder_hash
        Hash of its weights.
    trained_on
        Training sections and the group of each.
    card
        These, and what else the model was made from.
    trust
        What tells how far to trust a prediction.

    See Also
    --------
    nh2st_scverse.tl.train : make one.
    nh2st_scverse.tl.predict_expression : apply it.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
    >>> len(model.genes)
    20
    """

    # Read from the card and from what tells trust.
    unit: str
    patch_um: float
    spacing_um: float
    encoder: str
    encoder_hash: str
    encoder_dim: int
    patch_px: int
    stain: dict[str, Any] | None
    trained_on: dict[str, str]
    seed: int
    interrupted: bool
    packages: dict[str, str]
    components: np.ndarray
    residuals: Residuals | None
    novelty: Novelty | None

    def __init__(
        self,
        *,
        members: Sequence[Member],
        genes: Sequence[str],
        config: Config,
        card: Card,
        history: pd.DataFrame,
        scores: pd.DataFrame,
        trust: Trust,
    ) -> None:
        self.members = [member.eval() for member in members]
        self.config = config
        self.card = card
        self.history = history
        self.trust = trust
        self.genes = list(genes)
        self.scores = scores

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return deepcopy(found) if name in COPIED else found

    def __getattr__(self, name: str) -> Any:
        if name in OWNER and OWNER[name] in vars(self):  # not yet while it is copied
            return deepcopy(getattr(vars(self)[OWNER[name]], name))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWNER or (name in vars(self) and name in {"config", *COPIED}):  # once it is made
            raise AttributeError(f"{name} of a model cannot be set: it tells what the model was trained with.")
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *OWNER})

    def predict(self, section: Section, inputs: np.ndarray, device: str = "cpu") -> np.ndarray:
        """Predict the spots of a section.

        Parameters
        ----------
        section
            The section, with neighbourhoods as large as the model's.
        inputs
            (n_spots, n_features) features of its spots, or (n_spots, side, side, 3) uint8 patches for a model that
            holds its encoder.
        device
            Where to compute.

        Returns
        -------
        (n_spots, n_genes) float32, the mean over the members; NaN for spots without a usable image.

        Raises
        ------
        ValueError
            Features of another number than those the model was trained on.

        See Also
        --------
        attention : what it looks at.
        nh2st_scverse.tl.predict_expression : what users call.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> section, other = nh.data.section.locate_sections(sdata)
        >>> features = sdata["table"].obsm["nh2st_features"][section.rows]
        >>> model.predict(section, features).shape == (section.n_spots, 20)
        True
        """
        return self._over_members(predict_parts, section, inputs, device)[0]

    def likeness(self, section: Section, inputs: np.ndarray, device: str = "cpu") -> float:
        """How like the training tissue a section is.

        What varies together in its images is compared with what does in the training sections. Where a section is
        unlike, predictions come from ridges rather than from the network.

        Parameters
        ----------
        section
            The section, with neighbourhoods as large as the model's.
        inputs
            As for :meth:`predict`.
        device
            Where to compute.

        Returns
        -------
        1 down to 0, the mean over the members. Times the correlation on held-out tissue, it is what to expect of the
        section. 1 where it is not known: with ``fallback=False``, for models that hold their encoder or were saved by
        earlier versions, and for sections of fewer than 50 spots.

        Raises
        ------
        ValueError
            Features of another number than those the model was trained on.

        See Also
        --------
        predict : the expression.
        uncertainty : how far each prediction may be off.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> section, other = nh.data.section.locate_sections(sdata)
        >>> model.likeness(section, sdata["table"].obsm["nh2st_features"][section.rows]) > 0.5
        True
        """
        return float(np.mean(list(self._by_member(likeness, section, inputs, device))))

    def attention(self, section: Section, inputs: np.ndarray, device: str = "cpu") -> np.ndarray:
        """How much each spot looks at itself and at its neighbours.

        It is that of the network, through which the neighbourhood reaches a prediction. The ridge beside it
        (``config.ridge`` is its share) sees the spot and the mean of its neighbourhood and has none. Attention tells
        what was looked at, not what it did to a gene.

        Parameters
        ----------
        section
            The section, with neighbourhoods as large as the model's.
        inputs
            As for :meth:`predict`.
        device
            Where to compute.

        Returns
        -------
        (n_spots, K) float32 in the order of ``section.neighbours.nodes``, the spot itself first: the mean over heads
        and members. It sums to 1, is 0 where there is no neighbour, and NaN for spots without a usable image.

        Raises
        ------
        ValueError
            A model that predicts from the spot alone, as those of preset ``"paper"``. Features of another number than
            those the model was trained on.

        See Also
        --------
        predict : the expression.
        nh2st_scverse.pl.neighbourhood : draws the attention of one spot.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> section, other = nh.data.section.locate_sections(sdata)
        >>> features = sdata["table"].obsm["nh2st_features"][section.rows]
        >>> attention = model.attention(section, features)
        >>> attention.shape == (section.n_spots, 9), bool((abs(attention.sum(axis=1) - 1) < 1e-5).all())
        (True, True)
        """
        check_context(self)
        return self._over_members(attend_parts, section, inputs, device)[0]

    def _over_members(
        self,
        of: Callable[[Member, Tensors], Iterator[Part]],
        section: Section,
        inputs: np.ndarray,
        device: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean of what the members say of each spot, and their variance (G,) about it, mean over spots, in one pass."""
        usable, n = section.usable, len(self.members)
        total, squares = np.empty(0, np.float32), np.zeros(())
        done = 0  # members

        def add(member: Member, spots: Tensors) -> None:
            nonlocal total, squares, done
            for rows, tensor in of(member, spots):  # no member's values of all spots are held beside the sum
                found = tensor.cpu().numpy()
                if not np.isfinite(found[usable[rows]]).all():
                    raise ValueError(
                        f"A member of the model gives values for section {section.name!r} that are not finite: its "
                        "features are far from those of the training sections, or the training diverged."
                    )
                found[~usable[rows]] = np.nan
                if not done:
                    if not rows.start:
                        total = np.empty((section.n_spots, found.shape[1]), dtype=np.float32)
                    total[rows] = found
                    continue
                before = total[rows] / np.float32(done)  # Welford's update
                total[rows] += found
                away = (found - before) * (found - total[rows] / np.float32(done + 1))
                squares = squares + away[usable[rows]].sum(axis=0, dtype=np.float64) / usable.sum()
            done += 1

        for _ in self._by_member(add, section, inputs, device):
            pass
        total /= np.float32(n)
        return total, squares / n

    def _by_member(
        self,
        of: Callable[[Member, Tensors], T],
        section: Section,
        inputs: np.ndarray,
        device: str,
    ) -> Iterator[T]:
        """What each member says of a section."""
        if inputs.ndim == 2 and inputs.shape[1] != self.members[0].n_features:
            raise ValueError(
                f"The model was trained on {self.members[0].n_features} features ({self.encoder}), found "
                f"{inputs.shape[1]} in section {section.name!r}. Those of its own encoder are left in the "
                "table by nh.tl.predict_expression(sdata, model=model)."
            )
        how, projected = self.config.standardise, self.config.n_components is not None
        tensors = stack(Data((section,), (inputs,)), standardise=how, projected=projected).to(device)
        for member in self.members:
            with torch.inference_mode():
                member.to(device)
                seen = tensors
                if member.trunk is None and member.projection is not None:
                    seen = replace(tensors, inputs=components(tensors.inputs, member.projection))
                found = of(member, seen)
                member.cpu()
            yield found

    def uncertainty(
        self, section: Section, inputs: np.ndarray, device: str = "cpu"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions, their standard deviation, and novelty of the tissue.

        Parameters
        ----------
        section
            The section, with neighbourhoods as large as the model's.
        inputs
            As for :meth:`predict`.
        device
            Where to compute.

        Returns
        -------
        Three arrays. (n_spots, n_genes): what :meth:`predict` gives. (n_spots, n_genes): the standard deviation of the
        residuals on tissue that the members never saw, as a function of the prediction, less what the mean of the
        members gains on each. (n_spots,): how unlike the training tissue, 1 what 5 % of the spots of a training group
        exceed when the other groups judge it.

        Raises
        ------
        ValueError
            The model was saved by a version that kept no residuals, or had no held-out tissue to take them from.

        See Also
        --------
        nh2st_scverse.tl.predict_expression : writes both into the table, with ``uncertainty=True``.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> section, other = nh.data.section.locate_sections(sdata)
        >>> features = sdata["table"].obsm["nh2st_features"][section.rows]
        >>> predicted, std, novelty = model.uncertainty(section, features)
        >>> bool((std > 0).all()), novelty.shape == (section.n_spots,)
        (True, True)
        """
        check_residuals(self)
        assert self.trust.residuals is not None
        predicted, apart = self._over_members(predict_parts, section, inputs, device)
        return predicted, self.trust.residuals.std(predicted, apart), novelty_of(self, section, inputs)

    def embed(self, predicted: np.ndarray) -> np.ndarray:
        """Project predictions on the axes along which those of the training sections vary.

        Parameters
        ----------
        predicted
            (n_spots, n_genes), from :meth:`predict`.

        Returns
        -------
        (n_spots, n), n at most 50; the axes are the same for every section.

        See Also
        --------
        nh2st_scverse.tl.predict_expression : writes it to ``obsm["X_nh2st"]``.

        Examples
        --------
        >>> import numpy as np, nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> model.embed(np.zeros((5, 20))).shape
        (5, 20)
        """
        return predicted @ self.trust.components

    @property
    def identifier(self) -> str:
        """Short hash of the settings, panel, scores and weights that predictions and their uncertainty depend on.

        See Also
        --------
        provenance : what a table keeps beside it.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> len(model.identifier)
        16
        """
        return identifier(self._description(), self._arrays())

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a folder: ``weights.safetensors``, ``model.json``, ``history.csv``.

        Parameters
        ----------
        path
            The folder; made if needed.
        overwrite
            Replace a model that is there, at once when all of the new one is written: a full disk leaves the old one,
            and a process that is killed the old or the new one, whole. Other files in the folder stay.

        Returns
        -------
        The folder.

        Raises
        ------
        FileExistsError
            The folder holds something and `overwrite` is False.

        See Also
        --------
        load : read it.
        push_to_hub : share it.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> sorted(path.name for path in model.save("my_model").iterdir())
        ['history.csv', 'model.json', 'weights.safetensors']
        """
        folder = as_path(path, argument="path")
        hub.check_folder(path, argument="path")
        as_folder(path, argument="path")
        write(folder, self._description(), self._arrays(), self.history, overwrite=overwrite)
        return folder

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        encoder: str | Encoder | None = None,
        token: str | bool | None = None,
    ) -> NH2ST:
        """Read a model that :meth:`save` wrote, from disk or from the Hugging Face hub; nothing is unpickled.

        Parameters
        ----------
        path
            The folder, or ``"hf://owner/name"``: a model at the hub, ``"hf://owner/name@revision"`` in the state of a
            branch, tag or commit. Its files are kept in the cache of ``huggingface_hub``, which needs no network the
            next time.
        encoder
            For a model whose encoder was trained with it and was an object of yours: such an object, for its layers.
        token
            For a private or gated model at the hub. None: that of ``huggingface_hub.login()``, if there is one.

        Returns
        -------
        The model, which gives the predictions of the saved one.

        Raises
        ------
        FileNotFoundError
            No model in the folder, or no such model or revision at the hub.
        ValueError
            A value is not the one that was saved, or a newer version wrote it.
        PermissionError
            The model at the hub is gated.
        ConnectionError
            The hub cannot be reached, and the model was not loaded before.

        See Also
        --------
        save : write it.
        push_to_hub : share it.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> nh.NH2ST.load(model.save("my_model")).identifier == model.identifier
        True
        """
        folder = as_path(path, argument="path")
        if not hub.is_address(path):
            return cls(**read(folder, encoder))
        folder = hub.fetch(path, token)
        try:
            return cls(**read(folder, encoder))
        except ValueError as error:
            raise ValueError(f"The model at {str(path)!r} is refused. {error}") from error

    def model_card(self, name: str = "owner/name", *, licence: str | None = None, notes: str = "") -> str:
        """What :meth:`push_to_hub` tells of the model beside its files, to read it before.

        Parameters
        ----------
        name
            Of the model at the hub.
        licence
            A licence of the hub, as ``"cc-by-4.0"``. None: not stated.
        notes
            Markdown of yours: organ, species and stain, where the data are from and their terms, how to cite it.

        Returns
        -------
        Markdown with front matter: training sections and their groups, scores on held-out tissue, genes, use and
        limits, versions, licence. What a model does not record is said to be unknown.

        Raises
        ------
        ValueError
            A name that the hub cannot have, or a licence or notes that are no text.

        See Also
        --------
        push_to_hub : share the model.
        provenance : the same for programs.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> model.model_card("our-lab/drawn-tissue", licence="cc-by-4.0").splitlines()[1:3]
        ['library_name: nh2st-scverse', 'license: cc-by-4.0']
        """
        hub.as_repository(name, argument="name")
        if licence is not None and not (isinstance(licence, str) and licence.strip()):
            raise ValueError(f"Expected licence to be one of {hub.LICENCES}, or None, found {licence!r}.")
        if not isinstance(notes, str):
            raise ValueError(f"Expected notes to be Markdown, found {notes!r}.")
        return readme(self, name, licence, notes)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        licence: str | None = None,
        notes: str = "",
        private: bool = True,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Put the model to the Hugging Face hub: the files of :meth:`save` and :meth:`model_card`, in one commit.

        The names of training sections and their groups go with it, and with them marks by which their tissue is known
        again: let no name be that of a person.

        Parameters
        ----------
        repo_id
            ``"owner/name"``; made if needed. A model that is there is replaced, and stays in the history of the hub.
        licence
            A licence of the hub, as ``"cc-by-4.0"``. None: not stated, which lets nobody use the model.
        notes
            Markdown of yours for the card: organ, species and stain, where the data are from and their terms.
        private
            What is made is seen by you or your organisation alone. Pass False to publish it. What is there stays as it
            is.
        token
            With the right to write. None: that of ``huggingface_hub.login()``.
        revision
            Branch; made if needed. None: ``"main"``.
        commit_message
            None: tells the identifier of the model.

        Returns
        -------
        The address of the model in this state, for :meth:`load`: ``"hf://owner/name@commit"``.

        Raises
        ------
        ValueError
            A name or a licence that the hub does not know.
        PermissionError
            You are not logged in, or may not write there.
        FileExistsError
            Something else than a model is there.
        ConnectionError
            The hub cannot be reached.

        See Also
        --------
        model_card : read the card before.
        load : ``nh.NH2ST.load("hf://owner/name")``.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> address = model.push_to_hub("our-lab/drawn-tissue", licence="cc-by-4.0")  # doctest: +SKIP
        >>> nh.NH2ST.load(address).identifier == model.identifier  # doctest: +SKIP
        True
        """
        card = self.model_card(repo_id, licence=licence, notes=notes)
        for argument, value in {"revision": revision, "commit_message": commit_message}.items():
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"Expected {argument} to be a text or None, found {value!r}.")
        if not isinstance(private, bool):
            raise ValueError(f"Expected private to be True or False, found {private!r}.")
        with TemporaryDirectory() as made:
            folder = self.save(Path(made) / "model")
            (folder / "README.md").write_text(card, encoding="utf-8")
            return hub.push(
                repo_id,
                folder,
                private=private,
                token=token,
                revision=revision,
                message=commit_message or f"Model {self.identifier}",
            )

    def _arrays(self) -> dict[str, torch.Tensor]:
        """Weights of the members by their number, and what tells trust."""
        weights = {f"{i}.{k}": v.contiguous() for i, m in enumerate(self.members) for k, v in m.state_dict().items()}
        return weights | {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in self.trust.arrays().items()}

    def _description(self) -> dict[str, Any]:
        """All but the arrays, as plain values."""
        return {
            "genes": self.genes,
            "config": self.config.to_dict(),
            "card": self.card.to_json(),
            "pearson": [None if np.isnan(v) else float(v) for v in self.scores["pearson"]],
            "n_members": len(self.members),
            "n_inputs": [m.network.query_projection.in_features for m in self.members],
            "n_features": self.members[0].n_features,
        }

    def provenance(self) -> dict[str, Any]:
        """What a table keeps about its predictions: flat scalars, and one JSON string with the rest.

        Returns
        -------
        ``model``, ``preset``, ``encoder``, ``encoder_hash``, ``unit``, ``patch_um``, ``spacing_um``, ``n_genes``,
        ``mean_pearson``, ``held_out`` (the tissue that it is of, in words), and ``json`` with all settings, genes,
        training sections and versions of packages.

        See Also
        --------
        identifier : the model in one word.

        Examples
        --------
        >>> import nh2st_scverse as nh
        >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
        >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
        >>> model.provenance()["encoder"], model.provenance()["patch_um"]
        ('efficientnet_lite0_stages+statistics+texture', 75.0)
        """
        return {
            "model": self.identifier,
            "preset": self.config.name,
            "encoder": self.encoder,
            "encoder_hash": self.encoder_hash,
            "unit": self.unit,
            "patch_um": self.patch_um,
            "spacing_um": self.spacing_um,
            "n_genes": len(self.genes),
            "held_out": held_out_tissue(self.trained_on),
            "mean_pearson": float(np.nanmean(self.scores["pearson"]))
            if self.scores["pearson"].notna().any()
            else np.nan,
            "json": json.dumps({"genes": self.genes, "config": self.config.to_dict(), **self.card.to_json()}),
        }

    def __repr__(self) -> str:
        held_out = self.provenance()["mean_pearson"]
        return (
            f"NH2ST model, preset {self.config.name!r}: {len(self.genes)} genes ({_some(self.genes)}), "
            f"unit {self.unit}\n"
            f"  trained on {len(self.trained_on)} section(s): {_some(self.trained_on)}; "
            f"{len(self.members)} member(s)\n"
            f"  images: {self.encoder}, patches of {self.patch_um:g} µm\n"
            f"  mean Pearson on held-out tissue of the training sections: {held_out:.3f}\n"
            f"  held out: {held_out_tissue(self.trained_on)}"
        )

    def _repr_html_(self) -> str:
        """A short table, for notebooks."""
        pearson = self.scores["pearson"].dropna().sort_values(ascending=False)
        best = [f"{gene} {r:.2f}" for gene, r in pearson.items()]
        groups = list(dict.fromkeys(self.trained_on.values()))
        epochs = self.history.groupby("member")["epoch"].max() + 1
        rows = {
            "preset": self.config.name,
            "genes": f"{len(self.genes)}: {_some(self.genes)}",
            "unit": self.unit,
            "image encoder": self.encoder,
            "patches": f"{self.patch_um:g} µm, spots {self.spacing_um:g} µm apart",
            "training sections": f"{len(self.trained_on)}: {_some(self.trained_on)}",
            "groups held out": f"{len(groups)}: {_some(groups)}",
            "scores are of": held_out_tissue(self.trained_on),
            "members": f"{len(self.members)}, of {epochs.min()} to {epochs.max()} epochs"
            + (" (interrupted)" if self.interrupted else ""),
            "Pearson on held-out tissue": f"mean {pearson.mean():.3f}, median {pearson.median():.3f}"
            if len(pearson)
            else "not known",
            "best genes": _some(best) if best else "not known",
        }
        left = "style='text-align: left'"
        cells = "".join(
            f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(value)}</td></tr>" for name, value in rows.items()
        )
        return f"<table><caption {left}><b>NH2ST model</b> {self.identifier}</caption>{cells}</table>"


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    listed = list(names)
    return ", ".join(listed[:N_NAMED]) + (", ..." if len(listed) > N_NAMED else "")


def check_context(model: NH2ST) -> None:
    """Raise ValueError for a model that has no attention to show."""
    if not model.config.context:
        raise ValueError(
            f"A model of preset {model.config.name!r} predicts from the spot alone (context is False) and looks at no "
            "neighbours. Train one with nh.tl.train(sdata): context is True by default."
        )


def novelty_of(model: NH2ST, section: Section, inputs: np.ndarray) -> np.ndarray:
    """How unlike the training tissue each spot looks (n_spots,); NaN without a usable image, or for patches."""
    told = np.full(section.n_spots, np.nan, dtype=np.float32)
    novelty = model.trust.novelty
    if novelty is not None and inputs.ndim == 2:
        usable = np.flatnonzero(section.usable)
        for start in range(0, len(usable), PART):
            some = usable[start : start + PART]
            told[some] = novelty.score(np.asarray(inputs[some], dtype=np.float32))
            release(inputs)
    return told


def check_residuals(model: NH2ST) -> None:
    """Raise ValueError for a model that cannot tell how far its predictions may be off."""
    if model.trust.residuals is None:
        raise ValueError(
            "The model knows no residuals on held-out tissue, from which uncertainty is told: its training sections "
            "were one group and too small to hold a block out of them, or it was saved by an early version. Train it "
            "on several groups (groups=), or without groups= so that every section is one."
        )
