"""Reads the data of the study. Nothing is downloaded: what is missing is left out."""

import sysconfig
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from examples.fashion_mnist import load_folder

BLOCK, TEXT_BLOCKS = 1000, {"train": 64, "valid": 16, "test": 32}


class Images(NamedTuple):
    """Images as rows of numbers from 0 to 1, and their classes from 0 to 9."""

    train_x: np.ndarray  # training and validation images are drawn from these
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    def only(self, classes: range) -> "Images":
        train = np.isin(self.train_y, classes)
        test = np.isin(self.test_y, classes)
        return Images(
            self.train_x[train],
            self.train_y[train],
            self.test_x[test],
            self.test_y[test],
        )


class Text(NamedTuple):
    """Characters as numbers from 0 to letters - 1."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    letters: int


def digits() -> Images:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        x, y, train_size=1200, stratify=y, random_state=0
    )
    return Images(train_x, train_y, test_x, test_y)


def fashion_mnist(folder: Path) -> Images:
    train_x, test_x, train_y, test_y = load_folder(folder)
    return Images(train_x, train_y, test_x, test_y)


def cifar10(archive: Path) -> Images:
    """Reads a tar archive of images, train/CLASS/*.jpg and test/CLASS/*.jpg."""
    pixels: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "test": []}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3 or parts[-3] not in pixels:
                continue
            with Image.open(tar.extractfile(member)) as image:
                whole = np.asarray(image.convert("RGB"), np.float32)
            small = whole.reshape(16, 2, 16, 2, 3).mean((1, 3)) / 255
            pixels[parts[-3]].append(small.reshape(-1))
            labels[parts[-3]].append(parts[-2])
    names = sorted(set(labels["train"]))
    train, test = (
        (
            np.stack(pixels[part]),
            np.array([names.index(n) for n in labels[part]], np.int32),
        )
        for part in ("train", "test")
    )
    return Images(*train, *test)


def source() -> Text:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return as_text("".join(p.read_text("utf-8") for p in sorted(folder.glob("*.py"))))


def text(file: Path) -> Text:
    return as_text(file.read_text("utf-8"))


def as_text(characters: str) -> Text:
    """Takes blocks of 1,000 characters from all over the text, in a fixed order."""
    ascii_only = characters.encode("ascii", "ignore")
    codes = np.frombuffer(ascii_only, np.uint8)
    count = sum(TEXT_BLOCKS.values())
    if len(codes) < count * BLOCK:
        rule = f"a text must have at least {count * BLOCK} characters"
        raise ValueError(f"{rule}, got {len(codes)}")
    blocks = codes[: len(codes) // BLOCK * BLOCK].reshape(-1, BLOCK)
    blocks = blocks[np.linspace(0, len(blocks) - 1, count).astype(int)]
    blocks = np.random.default_rng(0).permutation(blocks)
    letters, codes = np.unique(blocks, return_inverse=True)
    codes = codes.reshape(count, BLOCK).astype(np.int32)
    ends = np.cumsum(list(TEXT_BLOCKS.values()))
    parts = [part.reshape(-1) for part in np.split(codes, ends[:-1])]
    return Text(*parts, len(letters))
