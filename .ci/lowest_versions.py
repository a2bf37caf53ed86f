"""Prints each `name>=version` of pyproject.toml as the constraint `name==version`."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
for requirement in sorted({line for group in groups for line in group}):
    if match := re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement):
        print("{}=={}".format(*match.groups()))
