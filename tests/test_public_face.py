"""The public names: each is listed, and says what its arguments are and what it does.

Their examples are run as doctests.
"""

import inspect
import re

import pytest

import lrd_optax
from lrd_optax import experimental, plotting, schedules

MODULES = {
    module.__name__: module for module in (lrd_optax, schedules, plotting, experimental)
}
NAMES = [
    (path, name)
    for path, module in MODULES.items()
    for name in dir(module)
    if not name.startswith("_") and callable(getattr(module, name))
]


def argument_names(text):
    """The names that a section of a docstring explains, `*` and commas left out."""
    lines = re.findall(r"^  (?! )([*\w, ]+?):(?=\s)", text, re.MULTILINE)
    return [name.strip(" *") for line in lines for name in line.split(",")]


def sections(function):
    parts = re.split(r"^(\w+):\n", inspect.getdoc(function), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_names_are_found():
    assert len(NAMES) >= 30


@pytest.mark.parametrize("path", MODULES)
def test_module_lists_its_names(path):
    """All that it has, and no other, besides the arguments of its functions."""
    names = {name for name in dir(MODULES[path]) if not name.startswith("_")}
    listed = set(re.findall(r"(?<!`)`(\w+)`(?!`)", MODULES[path].__doc__))
    assert names - listed in (set(), {"COLORS"})
    functions = [getattr(MODULES[path], name) for where, name in NAMES if where == path]
    arguments = {name for f in functions for name in inspect.signature(f).parameters}
    assert listed <= names | arguments


@pytest.mark.parametrize(("path", "name"), NAMES)
def test_docstring(path, name):
    public = getattr(MODULES[path], name)
    found = sections(public)
    if inspect.isclass(public):
        assert argument_names(found["Attributes"]) == list(public._fields)
        return
    parameters = list(inspect.signature(public).parameters)
    assert argument_names(found["Args"]) == parameters
    # A colon in the first line would be taken for the end of a type.
    assert ":" not in re.sub(r":\w+:`", "", found["Returns"].splitlines()[0])
    assert f"{name}(" in found["Examples"] or "restarts(" in found["Examples"]


@pytest.mark.parametrize(("path", "name"), NAMES)
def test_signature_is_short(path, name):
    """As it stands in the source: no union is written out."""
    signature = str(inspect.signature(getattr(MODULES[path], name)))
    assert not re.search(r"jaxlib|_src|Union|\[typing|_\w+\.", signature), signature
