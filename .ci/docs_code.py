"""Writes the Python code of README.md and docs/ to files, for type checkers.

python .ci/docs_code.py FOLDER
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"^```(?:python|\{code-cell\})\n(.*?)^```", re.DOTALL | re.MULTILINE)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        blocks = CODE.findall(page.read_text())
        if blocks and "_build" not in page.parts:
            code = "\n\n".join(blocks).replace(";\n", "\n")
            # The whole path, since docs/api has pages of the same names as docs.
            name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
            (folder / f"{name}.py").write_text(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
