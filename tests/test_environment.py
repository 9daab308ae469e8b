"""pyproject.toml, environment.yml, the commands of the README and what the package imports agree."""

from __future__ import annotations

import ast
import os
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
    for name, requirement in wanted.items():
        assert [s.operator for s in requirement.specifier][:1] == [">="], name
        assert requirement.specifier.contains(metadata.version(name), prereleases=True), name


def test_what_the_package_imports_is_a_dependency():
    """Also what is imported inside functions; a library that only comes with another one may go away with it."""
    imported = set()
    lab = {"anywidget", "ipywidgets", "traitlets"}  # the last is what the widgets of the other two are made of
    for path in (ROOT / "nh2st_scverse").rglob("*.py"):
        before = set(imported)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
        if path.name == "_explore_widget.py":  # the one file that needs the extra "lab"
            imported -= lab - before
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
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    assert TEST_COMMAND in [step.get("run") for step in workflow["jobs"]["test"]["steps"]]


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_ci_script_is_executable_and_parses():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_pre_commit_hooks_are_local():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in repos} == {"local"}
    hooks = {hook["id"]: hook for repo in repos for hook in repo["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy"}
    assert all(hook["language"] == "system" for hook in hooks.values())
