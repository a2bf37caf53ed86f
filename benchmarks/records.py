"""JSON with one record per line, so that a diff shows which record has changed."""

import json
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
