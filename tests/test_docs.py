"""The code in README.md and in docs/ runs, and its assertions hold."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import lrd_optax

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The build of the site runs the notebooks.
PAGES = FILES + sorted((ROOT / "docs" / "notebooks").glob("*.md"))


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_code(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a block may save a picture
    names = {}  # the blocks of a file build on one another
    for block in re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL):
        exec(compile(block, file.name, "exec"), names)


def test_code_is_found():
    assert sum("```python" in file.read_text() for file in FILES) >= 2


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_to_files(file):
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", file.read_text()):
        assert (file.parent / link).exists(), link


def test_figures_of_the_guide_stand_in_the_study():
    """Each difference that is quoted from the study is one that its command wrote."""
    readme, guide, study = (
        " ".join((ROOT / name).read_text().split())
        for name in ("README.md", "docs/when_to_use.md", "docs/study.md")
    )
    begin, end = "## Does it help?", "[When to use it]"
    quoted = guide, readme[readme.index(begin) : readme.index(end)]
    figures = [re.findall(r"[+-][\d.]+ ± [\d.]+\d", text) for text in quoted]
    assert len(figures[0]) > 20
    assert len(figures[1]) > 0
    assert not [figure for found in figures for figure in found if figure not in study]


def test_tables_of_schedules():
    """Each row has calls, which run; each table a picture; each schedule a row."""
    text = (ROOT / "docs" / "schedules.md").read_text()
    public = {name for name in dir(lrd_optax.schedules) if not name.startswith("_")}
    names = {name: getattr(lrd_optax.schedules, name) for name in public}
    names |= {"optax": optax, "lrd_optax": lrd_optax, "schedules": lrd_optax.schedules}
    called: set[str] = set()
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE):
        _, header, table = part.partition("| schedule | use | formula | call |\n")
        if not header:
            continue
        rows = re.findall(r"^\| .+ \| .+ \| (.+) \|$", table, re.MULTILINE)
        assert len(rows) > 1
        assert re.search(r"^!\[.+\]\(images/schedules/\w+\.png\)$", table, re.MULTILINE)
        for cell in rows:
            calls = re.findall(r"`(.*?)`", cell)
            assert calls, cell
            for call in calls:
                made = eval(call, dict(names))
                if callable(made):
                    assert jnp.all(jnp.isfinite(jnp.asarray(made(jnp.arange(101)))))
                else:
                    assert isinstance(made, optax.GradientTransformation)
                    jax.eval_shape(made.init, jnp.ones(3))
                called |= set(re.findall(r"\w+", call))
    assert public
    assert not public - called


def test_pictures_of_schedules_are_shown():
    shown = "".join(file.read_text() for file in FILES)
    pictures = (ROOT / "docs" / "images" / "schedules").glob("*.png")
    assert not [path for path in pictures if f"schedules/{path.name})" not in shown]
