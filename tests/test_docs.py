"""The code in README.md and in docs/ runs, and its assertions hold."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_code(file):
    names = {}  # the blocks of a file build on one another
    for block in re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL):
        exec(compile(block, file.name, "exec"), names)


def test_code_is_found():
    assert sum("```python" in file.read_text() for file in FILES) >= 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_links_to_files(file):
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", file.read_text()):
        assert (file.parent / link).exists(), link
