"""Text as bytes: what to train on, and what to validate on."""

import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

HELD_OUT = 0.05
PACKAGES = {"site-packages", "dist-packages", "test", "tests"}  # no part of the library


class Text(NamedTuple):
    train: np.ndarray  # bytes, uint8
    validation: np.ndarray  # the last 5 %


def read(path: Path | None) -> bytes:
    """Returns a file, all texts in a folder, or Python's own library, joined."""
    pattern, left_out = "*", set[str]()
    if path is None:
        path, pattern = Path(sysconfig.get_path("stdlib")), "*.py"
        left_out = PACKAGES
    elif path.is_file():
        return path.read_bytes()
    files = [file.relative_to(path) for file in path.rglob(pattern)]
    kept = [file for file in files if not left_out & set(file.parts)]
    texts = (
        (path / file).read_bytes() for file in sorted(kept) if (path / file).is_file()
    )
    return b"\n".join(text for text in texts if b"\0" not in text)  # 0: no text


def load(path: Path | None, context: int) -> Text:
    try:
        data = np.frombuffer(read(path), np.uint8)
    except OSError as error:
        sys.exit(f"{error.filename or path} cannot be read: {error.strerror}")
    least = int((context + 2) / HELD_OUT) + 1
    if len(data) < least:
        rule = f"--text must have at least {least} bytes with --context {context}"
        sys.exit(f"{rule}, got {len(data)}")
    train = len(data) - int(HELD_OUT * len(data))
    return Text(data[:train], data[train:])


def windows(data: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    """Returns [number, context + 1]: the inputs, and each one's next byte."""
    return data[starts[:, None] + np.arange(context + 1)].astype(np.int32)


def batch_of(
    data: np.ndarray, seed: int, step: int, batch: int, context: int
) -> np.ndarray:
    """Returns the windows of step number `step`, which depend on nothing before it."""
    random = np.random.default_rng((seed, step))
    return windows(data, random.integers(len(data) - context, size=batch), context)


def validation_batches(
    data: np.ndarray, number: int, batch: int, context: int
) -> list[np.ndarray]:
    """Returns the same windows each time, evenly spaced."""
    starts = np.linspace(0, len(data) - context - 1, number * batch).astype(int)
    return [windows(data, part, context) for part in np.split(starts, number)]


def readable(data: bytes) -> str:
    """Returns text in which a terminal finds no codes, whatever a model has written."""
    letters = data.decode(errors="replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in letters)
