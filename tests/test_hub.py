"""Models at a hub: pushed to and loaded from a small stand-in that answers as the hub does. Nothing is downloaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import constants

import nh2st_scverse as nh
from nh2st_scverse.cli import main
from nh2st_scverse.model import Card, Trust
from nh2st_scverse.nn import Config, Member
from nh2st_scverse.train.trust import Residuals

FILES = {"README.md", "history.csv", "model.json", "weights.safetensors"}
GENES = ["EPCAM", "CD8A", "UMOD"]
USERS = {"of-me": "me", "of-guest": "guest"}
LICENCES = {"cc-by-4.0", "unknown"}


class Hub(ThreadingHTTPServer):
    """Repositories as branches of commits, each a mapping of names to contents."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # repository, commit, file
        self.branches: dict[str, dict[str, str]] = {}  # repository, branch, commit
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.status = 200  # of every answer, when it is another one
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add or replace files."""
        branches = self.branches.setdefault(name, {})
        before = self.commits.setdefault(name, {}).get(branches.get(branch, ""), {})
        number = hashlib.sha1(f"{name} {branch} {len(self.commits[name])}".encode()).hexdigest()
        self.commits[name][number] = before | files
        branches[branch] = number
        return number

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[name][self.branches[name].get(revision, revision)]


class Answer(BaseHTTPRequestHandler):
    """What ``HfApi`` and ``snapshot_download`` ask for."""

    server: Hub

    def log_message(self, *_: Any) -> None: ...

    def reply(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        named = {"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers
        for name, value in named.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str, status: int = 404) -> None:
        self.reply(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.user = USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        hub = self.server
        hub.asked.append(f"{self.command} {'/'.join(parts)}")
        if hub.status != 200:
            return self.reply(hub.status, {"error": "out of order"})
        match parts:
            case ["api", "whoami-v2"]:
                return self.reply(200, {"name": self.user}) if self.user else self.reply(401)
            case ["api", "validate-yaml"]:
                front = yaml.safe_load(json.loads(self.body)["content"].split("---")[1])
                wrong = [] if front["license"] in LICENCES else [{"message": '"license" must be one of [...]'}]
                return self.reply(400 if wrong else 200, {"errors": wrong, "warnings": []})
            case ["api", "repos", "create"]:
                return self.create(json.loads(self.body))
            case ["api", "models", owner, name, *rest]:
                return self.model(f"{owner}/{name}", rest)
            case [owner, name, "resolve", revision, file]:
                return self.file(f"{owner}/{name}", revision, file)
        self.reply(404, {"error": "Not Found"})

    do_GET = do_HEAD = do_POST = answer

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if self.user is None:
            return self.reply(401, {"error": "Invalid username or password."})
        if self.user != asked["organization"]:
            return self.reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        if name in self.server.commits:
            return self.reply(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        self.server.commit(name, {".gitattributes": b""})
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self.reply(200, {"url": f"{self.server.url}/{name}"})

    def model(self, name: str, rest: list[str]) -> None:
        hub = self.server
        if name not in hub.commits or (name in hub.private and self.user != name.split("/")[0]):
            return self.refuse("RepoNotFound", 404 if self.user else 401)
        branches = hub.branches[name]
        revision = rest[1] if len(rest) > 1 else "main"
        number = branches.get(revision, revision)
        if rest == ["refs"]:
            listed = [{"name": one, "ref": f"refs/heads/{one}", "targetCommit": two} for one, two in branches.items()]
            return self.reply(200, {"branches": listed, "converts": [], "tags": []})
        if rest[:1] in (["preupload"], ["commit"], ["branch"]) and self.user != name.split("/")[0]:
            return self.reply(403, {"error": "you must use a write token"})
        if rest[:1] == ["branch"]:
            if revision in branches:
                return self.reply(409, {"error": "Reference already exists"})
            branches[revision] = branches["main"]
            return self.reply(200)
        if number not in hub.commits[name]:
            return self.refuse("RevisionNotFound")
        files = hub.commits[name][number]
        match rest:
            case [] | ["revision", _]:
                self.reply(200, {"id": name, "sha": number, "siblings": [{"rfilename": one} for one in files]})
            case ["tree", _]:
                listed = [{"type": "file", "path": k, "size": len(v), "oid": _hash(v)} for k, v in files.items()]
                self.reply(200, listed)
            case ["preupload", _]:
                asked = json.loads(self.body)["files"]
                modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
                self.reply(200, {"files": modes})
            case ["commit", _]:
                head, *lines = [json.loads(line) for line in self.body.splitlines()]
                added = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines}
                oid = hub.commit(name, added | {"message": head["value"]["summary"].encode()}, revision)
                hub.commits[name][oid].pop("message")
                hub.message = head["value"]["summary"]
                self.reply(200, {"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid})
            case _:
                self.reply(404, {"error": "Not Found"})

    def file(self, name: str, revision: str, file: str) -> None:
        hub = self.server
        if name in hub.gated and self.user is None:
            return self.refuse("GatedRepo", 401)
        number = hub.branches[name].get(revision, revision)
        content = hub.commits[name][number][file]
        self.reply(200, content, ETag=f'"{_hash(content)}"', X_Repo_Commit=number)


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that holds nothing, an empty cache, and nobody logged in."""
    server = Hub()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    point_to(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for module in (constants, huggingface_hub.file_download):  # earlier versions read the latter
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)


@pytest.fixture
def me(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-me")


@pytest.fixture(scope="module")
def model() -> nh.NH2ST:
    """A model that was never trained, of two sections of one patient."""
    config = Config.preset(embedding=8, hidden=8, bottleneck=8, heads=2, n_components=4, landmarks=5)
    member = Member(config, 6, 4, len(GENES), n_landmarks=5)
    card = Card(
        unit="log1p counts",
        patch_um=75,
        spacing_um=100,
        encoder="colours",
        encoder_hash="v1",
        encoder_dim=6,
        patch_px=16,
        trained_on={"s`1": "P1", "s_2": "P1"},
        packages={"torch": "2.6"},
    )
    return nh.NH2ST(
        members=[member],
        genes=GENES,
        config=config,
        card=card,
        history=pd.DataFrame({"member": [0], "held_out": ["P1"], "epoch": [0], "loss": [0.5]}),
        scores=pd.DataFrame({"pearson": [0.1, np.nan, 0.3]}, index=pd.Index(GENES, name="gene")),
        trust=Trust(components=np.eye(3, dtype=np.float32), residuals=None, novelty=None),
    )


# ------------------------------------------------------------------------------------------------- there and back


def test_pushed_and_loaded_it_is_the_same(hub: Hub, me: None, model: nh.NH2ST) -> None:
    address = model.push_to_hub("me/tissue", licence="cc-by-4.0")
    assert address == f"hf://me/tissue@{hub.branches['me/tissue']['main']}"
    assert set(hub.files("me/tissue")) == FILES | {".gitattributes"}
    assert "me/tissue" in hub.private and hub.message == f"Model {model.identifier}"
    assert hub.files("me/tissue")["README.md"].decode() == model.model_card("me/tissue", licence="cc-by-4.0")
    (section,) = nh.data.section.locate_sections(nh.datasets.synthetic(width_um=700))
    features = np.random.default_rng(0).normal(size=(section.n_spots, 6)).astype(np.float32)
    predicted = model.predict(section, features)
    assert predicted[section.usable].std() > 0
    for where in ("hf://me/tissue", address, Path("hf://me/tissue")):
        loaded = nh.NH2ST.load(where)
        assert loaded.identifier == model.identifier and loaded.card == model.card
        assert np.array_equal(loaded.predict(section, features), predicted, equal_nan=True)


def test_a_revision_is_a_state(hub: Hub, me: None, model: nh.NH2ST) -> None:
    other = nh.NH2ST(**{**vars(model), "card": replace(model.card, seed=1)})
    first = model.push_to_hub("me/tissue", private=False, commit_message="The first")
    assert "me/tissue" not in hub.private and hub.message == "The first"
    other.push_to_hub("me/tissue")
    model.push_to_hub("me/tissue", revision="old", token="of-me")
    expected = {"hf://me/tissue": other, first: model, "hf://me/tissue@old": model}
    assert {at: nh.NH2ST.load(at).seed for at in expected} == {at: one.seed for at, one in expected.items()}


def test_only_files_of_a_model_are_fetched_and_a_second_load_needs_no_network(
    hub: Hub, me: None, model: nh.NH2ST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub("me/tissue")
    hub.commit("me/tissue", {"pytorch_model.bin": b"pickle", ".saved/model.json": b"{}", "code.py": b"1 / 0"})
    nh.NH2ST.load("hf://me/tissue")
    kept = {path.name for path in tmp_path.glob("cache/*/snapshots/*/**/*")}
    assert kept == FILES - {"README.md"}
    assert not [one for one in hub.asked if re.search("resolve.*(bin|saved|code|README)", one)]
    point_to("http://127.0.0.1:9", monkeypatch)
    assert nh.NH2ST.load("hf://me/tissue").identifier == model.identifier


def test_a_model_that_was_changed_at_the_hub_is_refused(hub: Hub, me: None, model: nh.NH2ST) -> None:
    model.push_to_hub("me/tissue")
    told = hub.files("me/tissue")["model.json"]
    hub.commit("me/tissue", {"model.json": told.replace(b"CD8A", b"CD8B")})
    with pytest.raises(ValueError, match=r"model at 'hf://me/tissue' is refused\. .*not as it was saved"):
        nh.NH2ST.load("hf://me/tissue")


# --------------------------------------------------------------------------------------------- what cannot be loaded


def test_what_is_not_there_is_told(hub: Hub, model: nh.NH2ST, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("lab/other", {"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(FileNotFoundError, match=r"Expected a model at http.*/lab/none, found none .* not logged in"):
        nh.NH2ST.load("hf://lab/none")
    with pytest.raises(FileNotFoundError, match=r"none that is open to you, and you are logged in as 'guest'"):
        nh.NH2ST.load("hf://lab/none", token="of-guest")
    with pytest.raises(FileNotFoundError, match=r"Expected revision 'v9' of model 'lab/other', found \['main'\]"):
        nh.NH2ST.load("hf://lab/other@v9")
    with pytest.raises(FileNotFoundError, match=r"no \['model.json', 'weights.*only \['config.json', 'model.safe"):
        nh.NH2ST.load("hf://lab/other")
    assert not [one for one in hub.asked if "resolve" in one]
    hub.status = 500
    with pytest.raises(ConnectionError, match=r"http://127.*refused what was asked of 'lab/other': .*500"):
        nh.NH2ST.load("hf://lab/other")
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(ConnectionError, match=r"'lab/another' cannot be reached .*not loaded here before.*folder"):
        nh.NH2ST.load("hf://lab/another")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="unset HF_HUB_OFFLINE"):
        nh.NH2ST.load("hf://lab/another")


def test_a_gated_or_private_model_asks_for_a_login(hub: Hub, me: None, model: nh.NH2ST) -> None:
    model.push_to_hub("me/open", private=False)
    model.push_to_hub("me/closed")
    hub.gated.add("me/open")
    with pytest.raises(PermissionError, match=r"'me/open' is gated, and you are not.*http.*/me/open.*hub\.login\(\)"):
        nh.NH2ST.load("hf://me/open", token=False)
    with pytest.raises(FileNotFoundError, match=r"logged in as 'guest'.*for a private model, log in"):
        nh.NH2ST.load("hf://me/closed", token="of-guest")
    for name in ("me/open", "me/closed"):
        assert nh.NH2ST.load(f"hf://{name}").identifier == model.identifier


@pytest.mark.parametrize("path", ["hf://tissue", "hf://a/b/c", "hf://a/b c", "hf://", "hf://a/b@", "hf://a/.."])
def test_addresses_that_are_none(path: str) -> None:
    with pytest.raises(ValueError, match=r"Expected .*(owner/name|hf://owner/name@revision)"):
        nh.NH2ST.load(path)


# --------------------------------------------------------------------------------------------- what cannot be pushed


def test_what_may_not_be_written_is_told_before_anything_is(hub: Hub, model: nh.NH2ST) -> None:
    for name in ("lab/model", "me/tissue"):
        with pytest.raises(PermissionError, match=r"write to '\w+/\w+'.*you are not logged in: log in with hugging"):
            model.push_to_hub(name)
    with pytest.raises(PermissionError, match=r"write to 'me/tissue'.*you are logged in as 'guest'"):
        model.push_to_hub("me/tissue", token="of-guest")
    hub.commit("lab/theirs", {"model.json": b"{}"})
    with pytest.raises(PermissionError, match=r"write to 'lab/theirs'.*logged in as 'me'"):
        model.push_to_hub("lab/theirs", token="of-me")
    hub.commit("me/text", {"tokenizer.json": b"{}"})
    with pytest.raises(FileExistsError, match=r"'me/text' at the hub holds no model .*tokenizer"):
        model.push_to_hub("me/text", token="of-me", revision="new")
    with pytest.raises(ValueError, match=r"Expected licence to be one that the hub knows \(http.*must be one of"):
        model.push_to_hub("me/tissue", licence="mine", token="of-me")
    assert set(hub.commits) == {"lab/theirs", "me/text"} and all(len(one) == 1 for one in hub.commits.values())


def test_no_network_to_push(hub: Hub, me: None, model: nh.NH2ST, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(ConnectionError, match=r"'me/tissue' cannot be reached at http.*use model\.save\('folder'\)"):
        model.push_to_hub("me/tissue")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"repo_id": "tissue"}, "repo_id|owner/name"),
        ({"licence": ""}, "Expected licence"),
        ({"notes": None}, "Expected notes"),
        ({"revision": 3}, "Expected revision"),
        ({"commit_message": ""}, "Expected commit_message"),
        ({"private": None}, "Expected private"),
    ],
)
def test_arguments_are_checked_before_the_hub_is_asked(hub: Hub, model: nh.NH2ST, settings: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        model.push_to_hub(**{"repo_id": "me/tissue", **settings})
    assert not hub.asked


def test_a_folder_on_disk_is_no_address(model: nh.NH2ST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"folder on disk, found 'hf://me/tissue'.*push_to_hub"):
        model.save("hf://me/tissue")
    result = CliRunner().invoke(main, ["train", str(tmp_path), "--out", "hf://me/tissue"])
    assert result.exit_code == 1 and "push_to_hub" in result.output
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ the card


def test_the_card_says_what_is_known_and_what_is_not(model: nh.NH2ST) -> None:
    card = model.model_card("me/tissue")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "nh2st-scverse" and front["license"] == "unknown" and "scverse" in front["tags"]
    assert "pipeline_tag" not in front
    for told in (
        "- group `P1`: `s'1`, `s_2`",
        "**0.200** (median 0.200, from 0.100 to 0.300, 2 of 3 genes)",
        "UMOD  0.300\nEPCAM  0.100\nCD8A  not known",
        "blocks of 2 sections of one group, 'P1'; nothing is said of other patients, animals or slides",
        'nh.NH2ST.load("hf://me/tissue")',
        "predict_expression(sdata, model=model)",  # no residuals: no uncertainty
        "does not record organ, species, staining",
        "Patches of 75 µm",
        f"Model `{model.identifier}`",
        "torch 2.6",
        "Not stated: ask the authors",
    ):
        assert told in card, told
    assert "interrupted" not in card and "From the authors" not in card
    more = model.model_card(licence="cc-by-4.0", notes="Mouse kidney {fresh}.")
    assert "## From the authors\n\nMouse kidney {fresh}.\n" in more and "`cc-by-4.0`, for these files" in more


def test_the_card_of_another_model(model: nh.NH2ST) -> None:
    own = replace(model.card, trained_on={"a": "a", "b": "b"}, interrupted=True, packages={})
    scores = model.scores.assign(pearson=np.nan)
    trust = replace(model.trust, residuals=Residuals(np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)))
    card = nh.NH2ST(**{**vars(model), "card": own, "scores": scores, "trust": trust}).model_card()
    for told in (
        "predict_expression(sdata, model=model, uncertainty=True)",
        "not told",
        "interrupted",
        "training sections: not known",
        "With which versions",
    ):
        assert told in card, told


# --------------------------------------------------------------------------------------------------- the command


def test_the_command_takes_an_address(hub: Hub, me: None, model: nh.NH2ST, tmp_path: Path) -> None:
    model.push_to_hub("me/tissue")
    slides = tmp_path / "slides"
    slides.mkdir()
    for address, expected in {"hf://me/tissue": "found none", "hf://me/none": "Expected a model at http"}.items():
        result = CliRunner().invoke(main, ["predict", str(slides), "--model", address, "--out", str(tmp_path / "out")])
        assert result.exit_code == 1 and expected in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
