"""Which elements of an object a call uses, and how it runs: where, from which seed. Checked before any work."""

from __future__ import annotations

import difflib
import errno
import inspect
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args, get_type_hints

import numpy as np

from nh2st_scverse._validators import as_allowances, check_positive

Panel = Literal["highest_mean", "highly_variable", "spatially_variable"]
"""How a gene panel is chosen."""

LARGEST_SEED = 2**32 - 1  # that every library takes
ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}  # by device, as Lightning calls them
OF_A_TRAINING = re.compile(r"training\.(json|new)|member_\d+\.(ckpt|new)|fold_\d+")  # names in a checkpoint_dir
QUIET = {  # what a Trainer does only when it is asked to
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class ElementOptions(TypedDict, total=False):
    """Keywords that choose the elements of an object."""

    table_key: str | None
    shapes_key: str | None
    image_key: str | Mapping[str, str] | None
    microns_per_pixel: float | None
    allow: str | Iterable[str]


@dataclass(frozen=True)
class Elements:
    """Which elements of an object, how fine its image is, and with which known problems to go on."""

    table: str | None = None
    shapes: str | None = None
    image: str | Mapping[str, str] | None = None  # one for all shapes, or by the key of the shapes
    microns_per_pixel: float | None = None
    allow: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        table_key: str | None = None,
        shapes_key: str | None = None,
        image_key: str | Mapping[str, str] | None = None,
        microns_per_pixel: float | None = None,
        allow: str | Iterable[str] = (),
    ) -> Elements:
        """Check what a user passed."""
        if microns_per_pixel is not None:
            check_positive(microns_per_pixel, argument="microns_per_pixel")
        image = dict(image_key) if isinstance(image_key, Mapping) else image_key
        for argument, key in {"table_key": table_key, "shapes_key": shapes_key, "image_key": image}.items():
            several = argument == "image_key"
            if not isinstance(key, str | None) and not (several and isinstance(key, dict)):
                more = ", or {shapes: image}" if several else ""
                raise TypeError(
                    f"Expected {argument} to be the name of one element{more}, found {type(key).__name__} {key!r}."
                )
        return cls(table_key, shapes_key, image, microns_per_pixel, as_allowances(allow))

    def image_of(self, shapes_key: str) -> str | None:
        """The image that was named for some shapes."""
        return self.image.get(shapes_key) if isinstance(self.image, Mapping) else self.image


ANY = Elements()
"""The only candidates of an object."""


class RunOptions(TypedDict, total=False):
    """The keywords of :class:`Run`."""

    device: str
    seed: int
    progress: bool
    cache_dir: str | os.PathLike[str] | None
    client: Any
    checkpoint_dir: str | os.PathLike[str] | None
    resume: bool
    trainer_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a call runs; what cannot be is refused when it is made.

    Raises
    ------
    TypeError
        A value of the wrong type; a name in `trainer_kwargs` that ``lightning.Trainer`` does not take.
    ValueError
        A device that is not here, a seed out of range, a closed client, a value that ``lightning.Trainer`` refuses, a
        `checkpoint_dir` that holds something else.
    FileExistsError
        A `checkpoint_dir` that holds something, without ``resume=True``.
    NotADirectoryError, PermissionError
        A folder that is a file, or that nobody may write to.
    """

    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    seed: int = 0
    progress: bool = True
    cache_dir: Path | None = None
    client: Any = None  # distributed.Client
    checkpoint_dir: Path | None = None
    resume: bool = False
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every option, and hold plain values."""

        def hold(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        hold("device", as_device(self.device))
        hold("seed", as_seed(self.seed))
        hold("progress", as_flag(self.progress, argument="progress"))
        hold("resume", as_flag(self.resume, argument="resume"))
        hold("cache_dir", as_folder(self.cache_dir, argument="cache_dir"))
        hold("checkpoint_dir", as_folder(self.checkpoint_dir, argument="checkpoint_dir"))
        if self.checkpoint_dir is not None:
            if _is_first_process():  # the others come when the first one has begun the folder
                check_checkpoints(self.checkpoint_dir, resume=self.resume)
        elif self.resume:
            raise ValueError("resume=True goes on with the training in checkpoint_dir=: pass that folder too.")
        if self.client is not None:
            check_client(self.client)
        hold("trainer_kwargs", dict(as_trainer_kwargs(self.trainer_kwargs)))
        if self.trainer_kwargs:
            check_trainer(self)

    @classmethod
    def of(cls, **options: Unpack[RunOptions]) -> Run:
        """Check what a user passed."""
        given: Any = options
        return cls(**given)

    def but(self, **changes: Any) -> Run:
        """The same with other values that need no check: a folder inside its own, the next seed."""
        other = copy(self)
        for name, value in changes.items():
            object.__setattr__(other, name, value)
        return other

    @property
    def torch_device(self) -> str:
        """The device as torch calls it: ``"auto"`` is the GPU when there is one."""
        import torch

        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    def trainer_options(self) -> dict[str, Any]:
        """Arguments of ``lightning.Trainer``: the device, no output, and what the user asks for."""
        kind, _, number = self.device.partition(":")
        one = {"accelerator": ACCELERATORS[kind], "devices": [int(number)] if number else 1}
        return {**QUIET, **one, **self.trainer_kwargs}


def _is_first_process() -> bool:
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", None) in (None, 0)


def as_device(device: Any) -> str:
    """The name of a device of torch that is here.

    Raises
    ------
    ValueError
        It is unknown, or not here.
    """
    import torch

    name = str(device)
    gpus = torch.cuda.device_count()
    here = ["auto", "cpu"] + (["cuda", *(f"cuda:{i}" for i in range(gpus))] if gpus else [])
    here += ["mps"] if torch.backends.mps.is_available() else []
    if not isinstance(device, str | torch.device) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"Expected device to be one of {[*ACCELERATORS, 'cuda:1']}, found {device!r}. Here: {here}.")
    if name not in here:
        what = "no Apple GPU" if name == "mps" else f"{gpus} GPU(s)"
        raise ValueError(f"device={name!r} is not here: torch sees {what}. Available: {here}.")
    return name


def as_seed(seed: Any) -> int:
    """A whole number from 0 to 4294967295.

    Raises
    ------
    TypeError
        It is no whole number.
    ValueError
        It is out of range.
    """
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, Integral):
        raise TypeError(f"Expected seed to be a whole number from 0 to {LARGEST_SEED}, found {seed!r}.")
    if not 0 <= int(seed) <= LARGEST_SEED:
        raise ValueError(f"Expected seed to be a whole number from 0 to {LARGEST_SEED}, found {seed!r}.")
    return int(seed)


def as_flag(value: Any, *, argument: str) -> bool:
    """True or False; TypeError for everything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"Expected {argument} to be True or False, found {value!r}.")
    return bool(value)


def as_folder(folder: Any, *, argument: str) -> Path | None:
    """The path of a folder that is there, or can be made.

    Raises
    ------
    TypeError
        It is no path.
    NotADirectoryError
        It, or what it is in, is a file.
    PermissionError
        Nothing can be written there.
    """
    if folder is None:
        return None
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise TypeError(f"Expected {argument} to be the path of a folder, found {folder!r}.")
    path = Path(folder).expanduser()
    there = next(one for one in (path, *path.absolute().parents) if one.exists() or one.is_symlink())
    if not there.is_dir():
        raise NotADirectoryError(f"Expected {argument}={str(folder)!r} to be a folder, but {there} is a file.")
    if not _takes_files(there):
        raise PermissionError(
            f"{argument}={str(folder)!r} cannot be written: {there} is closed to you. Choose another."
        )
    return path


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder: what root is told by os.access is not always so."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return error.errno == errno.ENOSPC  # full, not closed: what is written there says so


def check_checkpoints(folder: Path, *, resume: bool) -> None:
    """Check that a folder is new, or that it has checkpoints to go on with.

    Raises
    ------
    FileExistsError
        The folder holds something, and nobody asked to go on with it.
    ValueError
        What it holds is no training.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not names:
        return
    if not resume:
        raise FileExistsError(
            f"checkpoint_dir={str(folder)!r} exists: pass resume=True to go on with the training in it, or choose "
            "another folder."
        )
    if not any(OF_A_TRAINING.fullmatch(name) for name in names):
        raise ValueError(f"checkpoint_dir={str(folder)!r} holds no training, but {sorted(names)[:5]}: choose another.")


def check_client(client: Any) -> None:
    """Check that a client of dask can be waited for.

    Raises
    ------
    TypeError
        It is no client of dask.
    ValueError
        It is closed, not connected yet, or asynchronous.
    """
    from distributed import Client

    remedy = "One on this machine: distributed.Client(n_workers=2, threads_per_worker=1)."
    if not isinstance(client, Client):
        raise TypeError(
            f"Expected client=distributed.Client(...) of a dask cluster, found {type(client).__name__}. {remedy}"
        )
    if client.asynchronous:
        raise ValueError(f"Expected a client that can be waited for, found one with asynchronous=True. {remedy}")
    if client.status != "running":
        raise ValueError(f"Expected a client that is connected, found one that is {client.status}. {remedy}")


def as_trainer_kwargs(given: Any) -> Mapping[str, Any]:
    """Arguments that ``lightning.Trainer`` knows; their values are not looked at.

    Raises
    ------
    TypeError
        No mapping, or a name that it does not take.
    """
    from lightning.pytorch import Trainer

    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"Expected trainer_kwargs= to be a dict of arguments of lightning.Trainer, found {given!r}.")
    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    unknown = [name for name in given if name not in known]
    if unknown:
        similar = [found for name in unknown for found in difflib.get_close_matches(str(name), known, n=2)]
        raise TypeError(
            f"Expected trainer_kwargs= with arguments of lightning.Trainer, found {unknown}. "
            + (f"Similar: {similar}." if similar else f"Available: {known}.")
        )
    return given


def check_trainer(run: Run) -> None:
    """Make a Trainer once, so that what it refuses is told before any work.

    Raises
    ------
    ValueError
        It refuses what the user gave.
    """
    from lightning.pytorch import Callback, Trainer

    given = run.trainer_kwargs
    if "spawn" in str(given.get("strategy")):
        raise ValueError(
            "Strategies that spawn processes are not supported: expected strategy='ddp' in a script, or 'ddp_notebook' "
            "in a notebook."
        )
    hints = get_type_hints(Trainer.__init__)
    for name, value in given.items():
        check_type(name, value, hints.get(name))
    if given.get("limit_val_batches", 1) == 0 or given.get("check_val_every_n_epoch", 1) != 1:
        raise ValueError(
            "A member is validated after every epoch, which says when its training ends: leave limit_val_batches and "
            f"check_val_every_n_epoch out of trainer_kwargs, found {dict(given)!r}."
        )
    callbacks = given.get("callbacks") or []
    listed = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    strange = [one for one in listed if not isinstance(one, Callback)]
    if strange:
        raise ValueError(f"lightning.Trainer refuses trainer_kwargs: callbacks has {strange}, no lightning.Callback.")
    try:
        with quiet():
            Trainer(**run.trainer_options())
    except Exception as error:  # whatever a value leads to
        raise ValueError(f"lightning.Trainer refuses trainer_kwargs={dict(given)!r}: {error}") from error


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError for a value of another type than the number, flag or text that a Trainer declares it to be.

    It takes ``max_epochs="three"`` and fails hours later.
    """
    types = set(get_args(hint) or [hint])
    if types <= {bool, int, float, str, type(None)}:
        types |= {int} if float in types else set()
        flag = isinstance(value, bool) and bool not in types
        if flag or not isinstance(value, tuple(types)):
            wanted = " or ".join(sorted(t.__name__ for t in types))
            raise ValueError(f"lightning.Trainer refuses trainer_kwargs: {name} is {wanted}, found {value!r}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what Lightning says that a user can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
