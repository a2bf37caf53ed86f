"""JSON with one record per line, so that a diff shows which record has changed.

And what the files of results have in common.
"""

import json
import math
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def dumps(value: Any, levels: int = 2, margin: str = "\n") -> str:
    """Returns JSON in which each item of the outer `levels` of containers has a line.

    A container of plain values stays on one line.
    """
    items = list(value.values()) if isinstance(value, dict) else value
    nested = isinstance(items, list) and any(isinstance(i, dict | list) for i in items)
    if levels == 0 or not nested:
        return json.dumps(value)
    deeper = margin + " "
    texts = [dumps(item, levels - 1, deeper) for item in items]
    if isinstance(value, dict):
        keys = map(json.dumps, value)
        texts = [f"{key}: {text}" for key, text in zip(keys, texts, strict=True)]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return start + deeper + f",{deeper}".join(texts) + margin + end


def rounded(value: Any, digits: int, not_finite: Callable[[float], Any] = str) -> Any:
    """Rounds all floats in lists and dicts. JSON has no NaN and no infinity.

    `not_finite` says what stands in their place.
    """
    if isinstance(value, dict):
        items = value.items()
        return {name: rounded(item, digits, not_finite) for name, item in items}
    if isinstance(value, list):
        return [rounded(item, digits, not_finite) for item in value]
    if isinstance(value, float):
        finite = math.isfinite(value)
        return float(f"{value:.{digits}g}") if finite else not_finite(value)
    return value


def read_lines(file: Path) -> list[Any]:
    """Reads a file of JSON lines. A last line without its end was cut off: left out."""
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def processor() -> str:
    """Returns the name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.*)", info.read_text())
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()
