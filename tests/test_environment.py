"""pyproject.toml, environment.yml, the commands of the README and what the package imports agree."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEST_COMMAND = 'pip install -e ".[test]" && python -m pytest'
LAB_COMMAND = 'pip install -e ".[lab]" && python -m nh2st_scverse'

# Where conda-forge has another name. Conda knows no extras: what scanpy[leiden] adds is listed, without bounds.
PYPI_NAME = {"pytorch": "torch"}
EXTRAS_IN_CONDA = {"scanpy[leiden]": {"python-igraph", "leidenalg"}}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(PYPI_NAME.get(r.name, r.name)): r for r in parsed}


def bounds(parsed: dict[str, Requirement]) -> dict[str, str]:
    return {name: str(requirement.specifier) for name, requirement in parsed.items()}


@pytest.fixture(scope="module")
def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_environment_names_the_packages_and_bounds_of_pyproject(environment):
    wanted = requirements(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["lab"])
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert "pip" in conda and pip[-1] == "-e ."
    found = bounds(requirements([entry for entry in conda + pip[:-1] if entry != "pip"]))
    assert len(found) == len(conda) - 1 + len(pip) - 1, "a package is named twice"

    assert found.pop("python") == PROJECT["requires-python"]
    extras = {f"{name}[{extra}]" for name, requirement in wanted.items() for extra in requirement.extras}
    assert extras == set(EXTRAS_IN_CONDA)
    for name in set().union(*EXTRAS_IN_CONDA.values()):
        assert found.pop(name) == ""
    assert found == bounds(wanted)


def test_every_dependency_has_a_lower_bound_that_is_installed_here():
    wanted = requirements(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])
    own = wanted.pop(PROJECT["name"])  # the extras that "test" brings along
    wanted |= requirements([line for extra in own.extras for line in PROJECT["optional-dependencies"][extra]])
    assert "sphinx" in wanted
    for name, requirement in wanted.items():
        assert [s.operator for s in requirement.specifier][:1] == [">="], name
        assert requirement.specifier.contains(metadata.version(name), prereleases=True), name


def test_what_the_package_imports_is_a_dependency():
    """Also what is imported inside functions; a library that only comes with another one may go away with it."""
    imported = set()
    lab = {"IPython", "anywidget", "ipywidgets", "traitlets"}  # the first and the last come with the other two
    for path in (ROOT / "nh2st_scverse").rglob("*.py"):
        before = set(imported)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
        if path.name in ("_explore_canvas.py", "_explore_genes.py", "_explore_widget.py"):  # need the extra "lab"
            imported -= lab - before
        if path.name == "_openvino.py":  # and "fast"
            imported -= set(requirements(PROJECT["optional-dependencies"]["fast"]))
    imported -= set(sys.stdlib_module_names) | {"nh2st_scverse"}
    assert "numpy" in imported
    assert not imported & lab
    distributions = metadata.packages_distributions()
    unknown = {
        module
        for module in imported
        if not {canonicalize_name(d) for d in distributions.get(module, [module])}
        & set(requirements(PROJECT["dependencies"]))
    }
    assert unknown == set()


def test_license_and_python_versions_are_consistent():
    assert PROJECT["license"] == "BSD-3-Clause"
    assert (ROOT / "LICENSE").read_text().startswith("BSD 3-Clause License")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    prefix = "Programming Language :: Python :: 3."
    assert [f"Programming Language :: Python :: {v}" for v in tested] == [
        c for c in PROJECT["classifiers"] if c.startswith(prefix)
    ]
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_the_commands_of_the_readme_are_those_that_are_checked():
    readme = (ROOT / "README.md").read_text()
    assert TEST_COMMAND in readme and LAB_COMMAND in readme
    script = (ROOT / ".ci" / "run").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    steps = "\n".join(step.get("run", "") for step in workflow["jobs"]["test"]["steps"])
    for commands in (script, steps):  # as they are, but for coverage
        assert TEST_COMMAND in re.sub(r"-m slipcover --json --out \S+ -m pytest", "-m pytest", commands)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_ci_script_is_executable_and_parses():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_pre_commit_hooks_are_local():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in repos} == {"local"}
    hooks = {hook["id"]: hook for repo in repos for hook in repo["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy", "codespell"}
    assert all(hook["language"] == "system" for hook in hooks.values())


def test_lint_is_the_same_everywhere():
    """What CONTRIBUTING.md names is what the script, the workflow and the hooks run."""
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    ran = [step.get("run") for step in workflow["jobs"]["lint"]["steps"]]
    for command in ("ruff check", "ruff format --check", "mypy nh2st_scverse", "codespell"):
        assert command in script and command in ran, command


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yaml")), ids=lambda path: path.stem)
def test_actions_are_pinned(path):
    """A tag can be moved to other code; the version beside the commit is for those who read it, and for dependabot."""
    uses = [line.strip(" -") for line in path.read_text().splitlines() if "uses:" in line]
    assert uses
    for line in uses:
        assert re.fullmatch(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


def test_only_the_release_publishes():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
    assert workflow[True] == {"release": {"types": ["published"]}}  # YAML 1.1 reads the key `on` as true
    assert {name: job.get("permissions") for name, job in workflow["jobs"].items()} == {
        "build": None,
        "publish": {"id-token": "write"},
    }
    assert "password" not in json.dumps(workflow)


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    (paper,) = citation["references"]
    assert paper["authors"][0]["family-names"] == "Qu"
    assert paper["url"] in (ROOT / "README.md").read_text()
    assert paper["url"] in PROJECT["urls"].values()


def test_types_are_shipped():
    """Without py.typed, type checkers and editors ignore the annotations of an installed package."""
    assert (ROOT / "nh2st_scverse" / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


# --- coverage ---


def coverage_report(**shares: float) -> dict:
    summary = {name: {"summary": {"percent_covered": share}} for name, share in shares.items()}
    return {"files": summary, "summary": {"percent_covered": 90.0}}


@pytest.mark.parametrize(
    ("shares", "status", "said"),
    [
        ({"a": 85.0, "b": 100.0}, 0, "2 files, 90.0 %"),
        ({"a": 84.9, "b": 100.0, "c": 3.0}, 1, "c: 3.0 % of the lines run in tests, expected 85 % or more\na: 84.9 %"),
        ({}, 1, "found none"),
    ],
)
def test_a_file_below_the_floor_fails(tmp_path, capsys, shares, status, said):
    spec = importlib.util.spec_from_file_location("coverage_floor", ROOT / "tests" / "coverage_floor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "coverage.json").write_text(json.dumps(coverage_report(**shares)))
    assert module.main(str(tmp_path / "coverage.json")) == status
    assert said in capsys.readouterr().out


def test_coverage_is_measured_and_checked():
    script = (ROOT / ".ci" / "run").read_text()
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())["jobs"]["test"]
    workflow = "\n".join(step.get("run", "") for step in job["steps"])
    for commands in (script, workflow):
        watched = commands.index("-m slipcover --json")
        table = commands.index("-m slipcover --merge")
        assert watched < table < commands.index("python tests/coverage_floor.py")
