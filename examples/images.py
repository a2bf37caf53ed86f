"""Reads labeled images: CIFAR-10, CIFAR-100, or folders of PNG and JPEG files.

`load` takes the path of

- an official archive, such as cifar-10-python.tar.gz, or the folder unpacked from it;
- a folder that holds one of these;
- a folder with train/CLASS/*.png and test/CLASS/*.png, or .jpg or .jpeg, and val/ in
  the place of test/ if there is no test/.

Nothing is downloaded. An example calls `find` before it imports JAX, so that it says at
once that there are no images.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cifar_archives import FORMS, PAGE, Data, Form, files_of, read_official
from PIL import Image, UnidentifiedImageError  # Matplotlib depends on it

ENDINGS = (".png", ".jpg", ".jpeg")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # of Pillow: 8 bits a channel, or less
MOST_BYTES = 8 * 2**30  # of all images of a part, which are held in memory


class Found(NamedTuple):
    kind: str
    path: Path
    form: Form | None  # None for folders of images


def load(path: Path) -> Data:
    """Reads all images, or raises a ValueError of one sentence for the user."""
    found = find(path)
    with os_errors_in_words(path):
        if found.form is None:
            return read_image_folders(found.path)
        return read_official(found.path, found.form)


def find(path: Path) -> Found:
    """Looks for images without reading them; the same ValueError if there are none."""
    with os_errors_in_words(path):
        found = list_candidates(path)
    archives = ", ".join(form.archive for form in FORMS)
    if not found and path.is_file():
        rule = f"{path} must be a folder or have the name of an official archive"
        raise ValueError(f"{rule} ({archives})")
    if not found:
        problem = "has no images to read" if path.is_dir() else "does not exist"
        folders = ", ".join(form.folder for form in FORMS)
        looked = f"looked for {archives}, {folders} and train/CLASS/*.png or *.jpg"
        where = f"get {FORMS[0].archive} from {PAGE}"
        raise ValueError(f"{path} {problem}: {where} ({looked})")
    # One data set in two forms is no question, as after an archive was unpacked.
    others = [other for other in found if other.kind != found[0].kind]
    if others:
        kinds = f"{found[0].kind} and {others[0].kind}"
        rule = f"{path} must hold one data set, got {kinds}"
        raise ValueError(f"{rule}: give the path of one of them")
    return found[0]


@contextlib.contextmanager
def os_errors_in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or path
        raise ValueError(f"{place} cannot be read: {error.strerror}") from None


def list_candidates(path: Path) -> list[Found]:
    places = [
        (form, place)
        for form in FORMS
        for place in (path, path / form.archive)
        if place.name == form.archive and place.is_file()
    ]
    places += [
        (form, folder)
        for form in FORMS
        for folder in (path, path / form.folder)
        if any((folder / name).is_file() for name in files_of(form))
    ]
    found = [Found(form.data_set, place, form) for form, place in places]
    if (path / "train").is_dir():
        found.append(Found("folders of images", path, None))
    return found


def read_image_folders(root: Path) -> Data:
    test = next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
    if test is None:
        raise ValueError(f"{root} must have the folder test or val beside train")
    parts = [list_images(root / "train"), list_images(test)]
    classes = sorted(parts[0])
    for name in sorted(parts[0].keys() ^ parts[1].keys()):
        rule = f"{root}: train and {test.name} must have folders of the same classes"
        raise ValueError(f"{rule}, but only one of them has {name}")
    shape = read_image(parts[0][classes[0]][0]).shape
    arrays = [array for part in parts for array in read_part(part, classes, shape)]
    counts = f"{len(arrays[1])} training and {len(arrays[3])} test images"
    what = f"{size_of(shape)} in {len(classes)} classes"
    return Data(
        *arrays, classes, f"{counts} of {what} from {root / 'train'} and {test}"
    )


def list_images(folder: Path) -> dict[str, list[Path]]:
    """Returns the images of each class, in an order that all machines agree on."""
    images = {}
    for place in folder.iterdir():
        if place.name.startswith(".") or not place.is_dir():
            continue
        paths = [path for path in place.iterdir() if path.suffix.lower() in ENDINGS]
        visible = [path for path in paths if not path.name.startswith(".")]
        if not visible:
            raise ValueError(f"{place} must have images ({', '.join(ENDINGS)})")
        images[place.name] = sorted(visible, key=lambda path: path.name)
    if not images:
        raise ValueError(f"{folder} must have a folder of images for each class")
    return images


def read_part(
    files: dict[str, list[Path]], classes: list[str], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and the labels of a part, class after class."""
    paths = [path for name in classes for path in files[name]]
    if len(paths) * math.prod(shape) > MOST_BYTES:
        rule = (
            f"images are held in memory, so they must have at most {MOST_BYTES} bytes"
        )
        folder, size = paths[0].parents[1], size_of(shape)
        raise ValueError(f"{rule}, got {len(paths)} images of {size} in {folder}")
    images = np.empty((len(paths), *shape), np.uint8)
    for index, path in enumerate(paths):
        image = read_image(path)
        if image.shape != shape:
            rule = f"all images must have the same size, here {size_of(shape)}"
            raise ValueError(f"{rule}, got {size_of(image.shape)} in {path}")
        images[index] = image
    counts = [len(files[name]) for name in classes]
    return images, np.repeat(np.arange(len(classes), dtype=np.int32), counts)


def read_image(path: Path) -> np.ndarray:
    """Returns [height, width, 3]. Gray becomes color; transparency is left out."""
    try:
        # An image of gigabytes in a small file only makes Pillow warn, and for some
        # other formats Pillow starts a program.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.mode not in MODES:
                    raise ValueError(f"its mode {image.mode} is none of {MODES}")
                if "transparency" in image.info:
                    image = image.convert("RGBA")  # to RGB at once would warn
                return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is neither a PNG nor a JPEG image") from None
    except Exception as error:  # damage can end in nearly any exception
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


def size_of(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} pixels"
