"""Builds the site: sphinx-build -W -b html docs docs/_build/html."""

import inspect
import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

import lrd_optax
import lrd_optax.plotting

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Homepage"]

project = "lrd_optax"
author = copyright = PROJECT["authors"][0]["name"]
version = release = lrd_optax.__version__

extensions = [
    "myst_nb",  # Markdown, and notebooks, which it runs
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links to sections, page.md#section, as on GitHub
nb_execution_mode = "cache"  # runs a notebook that has changed
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

default_role = "py:obj"  # `name` in a docstring links to what it names, if documented
autodoc_typehints = "none"  # the descriptions name the types
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a NamedTuple: a list, without their types

html_theme = "sphinx_book_theme"
html_title = "lrd_optax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
}


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts README.md on the first page, and lets links to files lead to GitHub."""
    if page == "index":
        app.env.note_dependency(ROOT / "README.md", docname=page)
        readme = re.sub(r"\]\((?!http|#)", "](../", (ROOT / "README.md").read_text())
        readme = readme.replace("](../CHANGELOG.md", "](changelog.md")
        source[0] = readme.replace("](../docs/", "](") + source[0]
    out_of_docs = "../" * (page.count("/") + 1)
    source[0] = source[0].replace(f"]({out_of_docs}", f"]({REPOSITORY}/blob/main/")


def public_names() -> set[str]:
    modules = lrd_optax, lrd_optax.schedules, lrd_optax.plotting, lrd_optax.experimental
    return {
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


def check_every_name_is_documented(app: Sphinx, env) -> None:
    documented = set(env.domaindata["py"]["objects"])
    for name in sorted(public_names() - documented):
        logging.getLogger(__name__).warning("%s is on no page of docs/api", name)


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_source)
    app.connect("env-check-consistency", check_every_name_is_documented)
