"""Reads Fashion-MNIST, or any folder in the format of MNIST. Nothing is downloaded."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

DEBIAN = Path(
    "/usr/share/datasets/fashion-mnist"
)  # of the package dataset-fashion-mnist


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """Reads unsigned bytes from a file in the format of MNIST, zipped or not."""
    found = [p for p in (folder / name, folder / f"{name}.gz") if p.is_file()]
    if not found:
        raise ValueError(f"{folder} has neither {name} nor {name}.gz")
    path, start = found[0], 4 * (dimensions + 1)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    # Two bytes of 0, the type (8: unsigned bytes), the number of dimensions, the sizes.
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        kind = f"an idx file of unsigned bytes in {dimensions} dimension(s)"
        raise ValueError(f"{path} is not {kind}")
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4).tolist()
    if len(raw) - start != math.prod(shape):
        sizes = " x ".join(map(str, shape))
        raise ValueError(f"{path} should hold {sizes} bytes, not {len(raw) - start}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def load_folder(folder: Path) -> list[np.ndarray]:
    """Reads images of 28x28 pixels, and takes the means of 2x2 pixels.

    Returns training images, test images, training labels, test labels.
    """
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(folder, f"{part}-images-idx3-ubyte", 3)
        labels = read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
        if images.shape != (len(labels), 28, 28) or not labels.size or labels.max() > 9:
            rule = f"{part} must be images of 28x28 pixels, each with a label 0 to 9"
            raise ValueError(f"{folder}: {rule}")
        pooled = images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32) / 255
        parts.append((pooled.reshape(len(labels), -1), labels.astype(np.int32)))
    return [parts[0][0], parts[1][0], parts[0][1], parts[1][1]]
