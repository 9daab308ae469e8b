"""Models at the Hugging Face hub: ``hf://owner/name`` or ``hf://owner/name@revision``, fetched and pushed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nh2st_scverse import __version__
from nh2st_scverse.model.saved import FILES

SCHEME = "hf:"  # a Path keeps no more than one of the slashes
LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether it is one at the hub, and no folder on disk."""
    return Path(path).as_posix().partition("/")[0] == SCHEME


def check_folder(path: str | os.PathLike[str], *, argument: str) -> None:
    """Raise ValueError for an address at the hub where a folder on disk is to be written."""
    if is_address(path):
        raise ValueError(
            f"Expected {argument} to be a folder on disk, found {str(path)!r}, which is at the hub: models go there "
            "with model.push_to_hub('owner/name', licence=...)."
        )


def as_repository(name: Any, *, argument: str) -> str:
    """A name as ``owner/name`` that the hub can have; ValueError otherwise."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    why = ""
    if isinstance(name, str) and name.count("/") == 1:
        try:
            validate_repo_id(name)
            return name
        except HFValidationError as error:
            why = f" {error}"
    raise ValueError(f"Expected {argument} to name a model at the hub as 'owner/name', found {name!r}.{why}")


def fetch(path: str | os.PathLike[str], token: str | bool | None) -> Path:
    """The folder in the cache with the files of a model at the hub; nothing but these files is fetched.

    Raises what :func:`_told` does, ValueError for an address that is none, and FileNotFoundError where the files are
    not those of a model.
    """
    from huggingface_hub import HfApi, snapshot_download

    name, at, revision = Path(path).as_posix().removeprefix(SCHEME).lstrip("/").partition("@")
    if at and not revision:
        raise ValueError(f"Expected 'hf://owner/name@revision', found no revision in {str(path)!r}.")
    repository = as_repository(name, argument=f"path={str(path)!r}")
    names: list[str] = []
    with _told(repository, revision or None, token):
        folder = Path(
            snapshot_download(
                repository,
                revision=revision or None,
                token=token,
                allow_patterns=list(FILES),
                library_name="nh2st-scverse",
                library_version=__version__,
            )
        )
        lacking = [file for file in FILES if not (folder / file).is_file()]
        if lacking:
            names = _files(HfApi(token=token), repository, revision or None)
    if lacking:
        raise FileNotFoundError(
            f"Expected a model of nh2st_scverse at {_address(repository, revision)}, found no {lacking} there, only "
            f"{names}. Models get there with model.push_to_hub({repository!r})."
        )
    return folder


def push(
    repository: str,
    folder: Path,
    *,
    private: bool,
    token: str | bool | None,
    revision: str | None,
    message: str,
) -> str:
    """Put the files of a folder and its card into one commit; the address of that state of the model.

    Raises what :func:`_told` does, ValueError for a card that the hub refuses, and FileExistsError where something
    else than a model stands.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import BadRequestError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import get_session, hf_raise_for_status

    api = HfApi(token=token, library_name="nh2st-scverse", library_version=__version__)
    card = folder / "README.md"
    with _told(repository, revision, token, write=True):
        about = {"repoType": "model", "content": card.read_text(encoding="utf-8")}
        try:  # create_commit does this too, when the repository is made
            hf_raise_for_status(get_session().post(f"{api.endpoint}/api/validate-yaml", json=about))
        except BadRequestError as error:
            why = " ".join(str(error).split())
            raise ValueError(f"Expected licence to be one that the hub knows ({LICENCES}), found {why}") from error
        try:
            there = _files(api, repository, revision)
        except RepositoryNotFoundError:
            there = []
        except RevisionNotFoundError:  # a branch of its own, which begins as main is
            there = _files(api, repository, None)
    if "model.json" not in there and set(there) - {".gitattributes", "README.md"}:
        raise FileExistsError(f"{repository!r} at the hub holds no model of nh2st_scverse but {there}: choose another.")
    with _told(repository, revision, token, write=True):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        added = [CommitOperationAdd(file, folder / file) for file in (*FILES, card.name)]
        done = api.create_commit(repository, added, commit_message=message, revision=revision)
    return _address(repository, done.oid)


def _address(repository: str, revision: str | None) -> str:
    return f"hf://{repository}" + (f"@{revision}" if revision else "")


def _files(api: Any, repository: str, revision: str | None) -> list[str]:
    """Names of the files of a repository."""
    return [one.rfilename for one in api.model_info(repository, revision=revision).siblings or ()]


@contextmanager
def _told(repository: str, revision: str | None, token: str | bool | None, *, write: bool = False) -> Iterator[None]:
    """Tell what the hub refuses in words that help.

    Raises
    ------
    FileNotFoundError
        No such model or revision.
    PermissionError
        It is gated, or may not be written.
    ConnectionError
        The hub cannot be reached, or fails.
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    login = "log in with huggingface_hub.login(), or pass token="
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"Model {repository!r} is gated, and {_who(token)}: ask for access at {page}, then {login}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"Expected revision {revision or 'main'!r} of model {repository!r}, found {_revisions(repository, token)}."
        ) from error
    except (errors.HTTPError, OSError) as error:
        if getattr(error, "errno", None):  # of the disk: it tells the file
            raise
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        unknown = isinstance(cause, errors.RepositoryNotFoundError)
        closed = isinstance(cause, errors.LocalTokenNotFoundError) or status in (401, 403)
        if unknown and not write:
            raise FileNotFoundError(
                f"Expected a model at {page}, found none that is open to you, and {_who(token)}. Check owner and name, "
                f"capitals too; for a private model, {login}."
            ) from error
        if unknown or closed:
            raise PermissionError(
                f"Expected leave to {'write to' if write else 'read'} {repository!r} at the hub, found none, and "
                f"{_who(token)}: {login} one that may {'write' if write else 'read'} there."
            ) from error
        reason = str(cause or error).strip().partition("\n")[0][:200] or type(error).__name__
        if status is not None:
            raise ConnectionError(f"{constants.ENDPOINT} refused what was asked of {repository!r}: {reason}") from error
        without = "" if write else " and was not loaded here before"
        other = "model.save('folder')" if write else "NH2ST.load('folder') on a copy of its folder"
        raise ConnectionError(
            f"Model {repository!r} cannot be reached at {constants.ENDPOINT}{without} ({reason}). Connect, unset "
            f"HF_HUB_OFFLINE; or, without a network, use {other}."
        ) from error


def _who(token: str | bool | None) -> str:
    """As whom the hub knows the user."""
    from huggingface_hub import HfApi

    if token is False:
        return "you are not logged in"
    try:
        return f"you are logged in as {HfApi(token=token).whoami()['name']!r}"
    except Exception:  # whatever: this is a part of a message
        return "you are not logged in"


def _revisions(repository: str, token: str | bool | None) -> list[str]:
    """Branches and tags."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi(token=token).list_repo_refs(repository)
    except Exception:  # the same
        return []
    return [one.name for one in (*refs.branches, *refs.tags)]
