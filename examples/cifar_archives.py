"""Reads CIFAR-10 and CIFAR-100 from the official archives, or from the files in them.

Nothing is downloaded, no file of an archive is written to the disk, and no pickle is
run. What has a published digest must have that digest.
"""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pickle_reader import read_pickle

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
TRAIN, TEST = 50_000, 10_000  # how many images there are
PIXELS = 3 * 32 * 32
LARGEST = 200_000_000  # bytes of a file; the largest archive has 170,498,071


class Data(NamedTuple):
    train_images: np.ndarray  # uint8 [images, height, width, 3]
    train_labels: np.ndarray  # int32 [images]
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: list[str]
    source: str  # what was read, in words


class Form(NamedTuple):
    """A form in which a data set is published: an archive that holds one folder."""

    data_set: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str  # the file with the names of the classes
    classes: int
    is_pickled: bool


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
BINARY_BATCHES = tuple(f"{name}.bin" for name in BATCHES)
FORMS = (
    Form(
        *("CIFAR-10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        *(BATCHES, "test_batch", "batches.meta", 10, True),
    ),
    Form(
        *("CIFAR-10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin"),
        *(BINARY_BATCHES, "test_batch.bin", "batches.meta.txt", 10, False),
    ),
    Form(
        *("CIFAR-100", "cifar-100-python.tar.gz", "cifar-100-python"),
        *(("train",), "test", "meta", 100, True),
    ),
    Form(
        *("CIFAR-100", "cifar-100-binary.tar.gz", "cifar-100-binary"),
        *(("train.bin",), "test.bin", "fine_label_names.txt", 100, False),
    ),
)

# The MD5 of an archive is on the page. Its SHA-256 is in Keras or MLDatasets.jl, and
# the MD5 of a pickled file in torchvision.
DIGESTS = {
    "cifar-10-python.tar.gz": {
        "MD5": "c58f30108f718f92721af3b95e74349a",
        "SHA256": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    },
    "cifar-10-binary.tar.gz": {
        "MD5": "c32a1d4ab5d03f1284b67883e8d87530",
        "SHA256": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    },
    "cifar-100-python.tar.gz": {
        "MD5": "eb9058c3a382ffc7106e4002c42a8d85",
        "SHA256": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    },
    "cifar-100-binary.tar.gz": {
        "MD5": "03b5dce01913d631647c71ecec9e9cb8",
        "SHA256": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    },
    "cifar-10-batches-py/data_batch_1": {"MD5": "c99cafc152244af753f735de768cd75f"},
    "cifar-10-batches-py/data_batch_2": {"MD5": "d4bba439e000b95fd0a9bffe97cbabec"},
    "cifar-10-batches-py/data_batch_3": {"MD5": "54ebc095f3ab1f0389bbae665268c751"},
    "cifar-10-batches-py/data_batch_4": {"MD5": "634d18415352ddfa80567beed471001a"},
    "cifar-10-batches-py/data_batch_5": {"MD5": "482c414d41f54cd18b22e5b47cb7c3cb"},
    "cifar-10-batches-py/test_batch": {"MD5": "40351d587109b95175f43aff81a1287e"},
    "cifar-10-batches-py/batches.meta": {"MD5": "5ff9c542aee3614f3951f8cda6e48888"},
    "cifar-100-python/train": {"MD5": "16019d7e3df5f24257cddd939b257f8d"},
    "cifar-100-python/test": {"MD5": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    "cifar-100-python/meta": {"MD5": "7973b15100ade9c7d40fb424638fde48"},
}


def read_official(path: Path, form: Form) -> Data:
    """Reads an archive, or the folder that was unpacked from it."""
    if path.is_dir():
        contents, checked = read_folder(path, form)
    else:
        contents, checked = read_archive(path, form)
    read_part = read_pickled if form.is_pickled else read_binary
    parts = []
    for names, count in ((form.train, TRAIN), ((form.test,), TEST)):
        pairs = [in_file(path, name, read_part, contents[name], form) for name in names]
        pixels, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        if len(pixels) != count:
            files = ", ".join(names)
            raise ValueError(
                f"{path}: {files} must have {count} images, got {len(pixels)}"
            )
        # On the disk an image is a plane of red, one of green and one of blue.
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts += [np.ascontiguousarray(images), labels.astype(np.int32)]
    classes = in_file(path, form.names, read_names, contents[form.names], form)
    return Data(*parts, classes, f"{form.data_set} from {path} ({checked})")


def files_of(form: Form) -> tuple[str, ...]:
    return (*form.train, form.test, form.names)


def in_file(path: Path, name: str, read: Callable[..., Any], *args: Any) -> Any:
    """Calls `read`, and adds to its errors where the mistake is."""
    try:
        return read(*args)
    except ValueError as error:
        raise ValueError(f"{path}, file {name}: {error}") from None


def read_whole(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} must have at most {LARGEST} bytes, got {size}")
    return path.read_bytes()


def check_digests(path: Path, name: str, raw: bytes) -> str:
    """Returns the digests in words, if they are the published ones."""
    for kind, expected in DIGESTS[name].items():
        got = hashlib.new(kind, raw, usedforsecurity=False).hexdigest()
        if got != expected:
            rule = f"{path} must have the {kind} {expected}, got {got}"
            raise ValueError(f"{rule}: download it again ({PAGE})")
    return ", ".join(f"{kind} {digest}" for kind, digest in DIGESTS[name].items())


def read_folder(folder: Path, form: Form) -> tuple[dict[str, bytes], str]:
    """Returns the content of each file, and in words what was checked."""
    contents = {}
    for name in files_of(form):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} must have the file {name}: get it from {PAGE}")
        contents[name] = read_whole(path)
        if form.is_pickled:
            check_digests(path, f"{form.folder}/{name}", contents[name])
    if form.is_pickled:
        return contents, "each file has its published MD5"
    return contents, "no digest is published for these files, so none was checked"


def read_archive(path: Path, form: Form) -> tuple[dict[str, bytes], str]:
    """Returns the content of each file, and in words what was checked."""
    raw, contents = read_whole(path), {}
    checked = check_digests(path, form.archive, raw)
    wanted = {f"{form.folder}/{name}": name for name in files_of(form)}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r|gz") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None:
                    continue
                if not member.isreg() or member.size > LARGEST:
                    rule = f"must be a plain file of at most {LARGEST} bytes"
                    raise ValueError(f"{path}: {member.name} {rule}")
                contents[name] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    for full, name in wanted.items():
        if name not in contents:
            raise ValueError(f"{path} must have the file {full}")
    return contents, checked


def fine(form: Form) -> str:
    """Returns what the names of fields begin with: CIFAR-100 has coarse classes too."""
    return "fine_" if form.classes == 100 else ""


def read_pickled(raw: bytes, form: Form) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(raw)
    pixels, labels = batch.get("data"), batch.get(f"{fine(form)}labels")
    if not isinstance(pixels, np.ndarray) or pixels.shape[1] != PIXELS:
        raise ValueError(f"data must be an array of uint8 with {PIXELS} columns")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise ValueError(f"{fine(form)}labels must be a list of {len(pixels)} labels")
    check_labels(labels, form)
    return pixels, np.asarray(labels)


def read_binary(raw: bytes, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Reads rows of a label and the pixels. CIFAR-100 has a coarse label before it."""
    row = PIXELS + (2 if form.classes == 100 else 1)
    if not raw or len(raw) % row:
        rule = f"its length must be a multiple of {row} bytes and above 0"
        raise ValueError(f"{rule}, got {len(raw)}")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, row)
    labels = rows[:, -PIXELS - 1]
    check_labels(labels.tolist(), form)
    return rows[:, -PIXELS:], labels


def check_labels(labels: Iterable[object], form: Form) -> None:
    for label in labels:
        if type(label) is not int or not 0 <= label < form.classes:
            # Only an integer is printed: a list may be too deep for that.
            got = label if type(label) is int else f"a {type(label).__name__}"
            raise ValueError(f"labels must be from 0 to {form.classes - 1}, got {got}")


def read_names(raw: bytes, form: Form) -> list[str]:
    """Returns the names of the classes, in the order of their labels."""
    names: Any = raw.split()
    if form.is_pickled:
        names = read_pickle(raw).get(f"{fine(form)}label_names")
    is_list = isinstance(names, list) and all(type(name) is bytes for name in names)
    if not is_list or len(names) != form.classes:
        raise ValueError(f"it must have the names of {form.classes} classes")
    return [name.decode("latin1") for name in names]
