"""What the package says of itself agrees, wherever it is said."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml  # Flax depends on it

import lrd_optax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = (ROOT / "CITATION.cff").read_text()


def cited(field):
    """The value of a field of CITATION.cff that stands at the left margin."""
    [value] = re.findall(rf"^{field}: (.*)$", CITATION, re.MULTILINE)
    return value


def test_one_version():
    assert cited("version") == lrd_optax.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == lrd_optax.__version__


def test_one_address():
    home = cited("repository-code")
    assert home.startswith("https://github.com/")
    assert PROJECT["urls"]["Homepage"] == home
    text = (ROOT / "pyproject.toml").read_text()
    owner = home.rsplit("/", 1)[0]
    for address in re.findall(rf"{owner}[^\"'$]*", text):
        assert address == home or address.startswith(f"{home}/"), address
    # What the addresses lead to is there.
    for address in PROJECT["urls"].values():
        if path := re.fullmatch(rf"{home}/(?:tree|blob)/main/(.*)", address):
            assert (ROOT / path[1]).exists(), address


def test_one_license_and_name():
    assert cited("license") == PROJECT["license"]
    assert PROJECT["name"] == "lrd_optax"
    assert [author["name"] for author in PROJECT["authors"]] == re.findall(
        r"^  - name: (.*)$", CITATION, re.MULTILINE
    )


def test_citation_has_what_its_format_asks_for():
    cff = yaml.safe_load(CITATION)
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] in ("software", "dataset")
    assert cff["message"]
    known = {"keywords", "license", "references", "repository-code", "version"}
    known |= {"date-released", "doi", "url"}
    assert set(cff) <= {"cff-version", "type", "message", "title", "authors"} | known
    for work in (cff, *cff["references"]):
        assert work["title"]
        assert work["authors"]
    assert {work["type"] for work in cff["references"]} == {"article"}


def test_classifiers_name_the_supported_versions_of_python():
    named = re.findall(
        r"^Programming Language :: Python :: 3\.(\d+)$",
        "\n".join(PROJECT["classifiers"]),
        re.MULTILINE,
    )
    lowest = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert named == [str(lowest + i) for i in range(len(named))]
    assert len(named) > 0


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_lowest_versions(name):
    """Those that are said to be needed are those that pip asks for."""
    lowest = dict(line.split(">=") for line in PROJECT["dependencies"])
    assert lowest["jax"] == lowest["jaxlib"]
    lowest["python"] = PROJECT["requires-python"].removeprefix(">=")
    text = " ".join((ROOT / name).read_text().split())
    [said] = re.findall(r"It needs ([^()]*?) or newer", text)
    found = re.findall(r"(\w+) (\d[\d.]*)", said)
    assert {package.lower(): version for package, version in found} == {
        package: lowest[package] for package in ("python", "jax", "optax")
    }


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_commands_of_the_makefile():
    """They run modules that an extra installs, and scripts that are there."""
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^(\w+):.* ## ", text, re.MULTILINE)
    printed = subprocess.run(
        ["make", "-n", "PYTHON=python", *targets],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    extras = PROJECT["optional-dependencies"].values()
    installed = {re.split(r"[\[>]", line)[0] for extra in extras for line in extra}
    modules = re.findall(r"^python -m (\S+)", printed, re.MULTILINE)
    assert len(modules) > 5
    assert set(modules) <= installed
    scripts = re.findall(r"^(?:python|bash) ([^-\s]\S*)", printed, re.MULTILINE)
    assert len(scripts) == 3
    assert all((ROOT / script).is_file() for script in scripts)


def test_what_the_guide_for_contributors_names_is_there():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"`make (\w+)", guide)
    assert len(commands) > 5
    for command in commands:
        assert f"\n{command}: " in makefile, command
    paths = re.findall(r"(?<=[`( ])[.\w]+/[\w./]*(?=[`)])", guide)
    assert len(paths) > 10
    for path in paths:
        made = path.startswith(("dist/", "docs/_build/"))
        places = ROOT / path, ROOT / "lrd_optax" / path
        assert made or any(place.exists() for place in places), path
