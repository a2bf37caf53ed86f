"""The reader of images: official archives, folders of images, and what is wrong."""

import hashlib
import io
import pickle
import re
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from python2_pickle import python2

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
try:
    import cifar_archives
    import images
finally:
    del sys.path[0]

FORMS = cifar_archives.FORMS
TRAIN, TEST = 10, 3  # images in the archives that are made here
NAMES10 = b"airplane automobile bird cat deer dog frog horse ship truck".split()
NAMES = {10: NAMES10, 100: [b"class_%02d" % number for number in range(100)]}

# Official files, with made images.


def make_images(count, classes):
    random = np.random.default_rng(count)
    shape = (count, 32, 32, 3)
    pixels = random.integers(256, size=shape, dtype=np.uint8)
    return pixels, random.integers(classes, size=count).tolist()


def content(form, count, part):
    """The bytes of a file with the images of that part."""
    pixels, labels = make_images(count, form.classes)
    pixels, labels = pixels[part], labels[part]
    rows = [b"".join(x[:, :, c].tobytes() for c in range(3)) for x in pixels]
    if not form.is_pickled:
        coarse = b"\x07" if form.classes == 100 else b""
        pairs = zip(labels, rows, strict=True)
        return b"".join(coarse + bytes([label]) + row for label, row in pairs)
    data = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 3072)
    batch = {b"batch_label": b"a batch", b"data": data}
    if form.classes == 100:
        batch |= {b"coarse_labels": [7] * len(labels), b"fine_labels": labels}
    else:
        batch[b"labels"] = labels
    return python2(batch | {b"filenames": [b"%d.png" % n for n in range(len(rows))]})


def contents(form):
    size = TRAIN // len(form.train)
    made = {
        name: content(form, TRAIN, slice(start, start + size))
        for name, start in zip(form.train, range(0, TRAIN, size), strict=True)
    }
    made[form.test] = content(form, TEST, slice(None))
    names = NAMES[form.classes]
    made[form.names] = b"\n".join([*names, b""])
    if form.is_pickled:
        key = b"label_names" if form.classes == 10 else b"fine_label_names"
        made[form.names] = python2({key: names, b"coarse_label_names": [b"x"]})
    return made


def write_folder(place, form, made):
    folder = place / form.folder
    folder.mkdir()
    for name, raw in made.items():
        (folder / name).write_bytes(raw)
        if form.is_pickled:
            digest = {"MD5": hashlib.md5(raw).hexdigest()}
            cifar_archives.DIGESTS[f"{form.folder}/{name}"] = digest
    return folder


def write_archive(place, form, made, prefix="", change=lambda member: None):
    path = place / form.archive
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo(f"{prefix}{form.folder}")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, raw in {"readme.html": b"", **made}.items():
            member = tarfile.TarInfo(f"{prefix}{form.folder}/{name}")
            member.size = len(raw)
            change(member)
            archive.addfile(member, io.BytesIO(raw))
    set_digests(path)
    return path


def set_digests(path):
    raw = path.read_bytes()
    digests = {"MD5": hashlib.md5(raw), "SHA256": hashlib.sha256(raw)}
    digests = {kind: digest.hexdigest() for kind, digest in digests.items()}
    cifar_archives.DIGESTS[path.name] = digests


@pytest.fixture
def small(monkeypatch):
    """Lets the archives that are made here pass for official ones."""
    monkeypatch.setattr(cifar_archives, "TRAIN", TRAIN)
    monkeypatch.setattr(cifar_archives, "TEST", TEST)
    monkeypatch.setattr(cifar_archives, "DIGESTS", dict(cifar_archives.DIGESTS))


def check(data, classes):
    expected = make_images(TRAIN, classes), make_images(TEST, classes)
    got = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    for (pixels, labels), (x, y) in zip(expected, got, strict=True):
        np.testing.assert_array_equal(x, pixels)
        np.testing.assert_array_equal(y, labels)
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        assert x.flags.c_contiguous
    assert data.classes == [name.decode() for name in NAMES[classes]]


forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.archive[:-7])


@forms
@pytest.mark.usefixtures("small")
def test_all_forms_give_the_same_arrays(tmp_path, form, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was run")

    for name in "load", "loads", "Unpickler":
        monkeypatch.setattr(pickle, name, refuse)
    made = contents(form)
    for number, write in enumerate((write_folder, write_archive)):
        place = tmp_path / str(number)
        place.mkdir()
        path = write(place, form, made)
        for given_path in (path, place):
            data = images.load(given_path)
            check(data, form.classes)
            assert data.source.startswith(f"{form.data_set} from {path} (")
        assert list(place.iterdir()) == [path]  # nothing is unpacked there
    assert all(d in data.source for d in cifar_archives.DIGESTS[form.archive].values())
    folder = images.load(tmp_path / "0")
    ending = "(each file has its published MD5)"
    if not form.is_pickled:
        ending = "(no digest is published for these files, so none was checked)"
    assert folder.source.endswith(ending)


@pytest.mark.usefixtures("small")
def test_an_archive_may_begin_its_names_with_a_dot(tmp_path):
    path = write_archive(tmp_path, FORMS[0], contents(FORMS[0]), prefix="./")
    check(images.load(path), 10)


@forms
def test_what_has_another_digest_is_refused(tmp_path, form, monkeypatch):
    official = cifar_archives.DIGESTS
    monkeypatch.setattr(cifar_archives, "DIGESTS", dict(official))
    path = write_archive(tmp_path, form, contents(form))
    for kind, size in (("SHA256", 32), ("MD5", 16)):
        expected = official[form.archive][kind]
        assert len(bytes.fromhex(expected)) == size
        cifar_archives.DIGESTS[form.archive][kind] = expected
        got = getattr(hashlib, kind.lower())(path.read_bytes()).hexdigest()
        rule = f"{path} must have the {kind} {expected}, got {got}: download it again"
        with pytest.raises(ValueError, match=re.escape(rule)):
            images.load(path)


def test_every_pickled_file_has_a_digest_which_is_checked(tmp_path, monkeypatch):
    for form in FORMS[0], FORMS[2]:
        for name in cifar_archives.files_of(form):
            official = cifar_archives.DIGESTS
            monkeypatch.setattr(cifar_archives, "DIGESTS", dict(official))
            place = tmp_path / f"{form.archive}-{name}"
            place.mkdir()
            folder = write_folder(place, form, contents(form))
            key = f"{form.folder}/{name}"
            cifar_archives.DIGESTS[key] = official[key]
            rule = f"{folder / name} must have the MD5 {official[key]['MD5']}, got"
            with pytest.raises(ValueError, match=re.escape(rule)):
                images.load(place)
            monkeypatch.undo()
    assert len({str(digest) for digest in official.values()}) == len(official) == 14


ROW = bytes(3073)
DEEP = []
for _ in range(300):
    DEEP = [DEEP]
BATCH = {b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 9, 2]}
WRONG_CONTENT = [
    (1, "test_batch.bin", b"", "its length must be a multiple of 3073 bytes and above"),
    (1, "test_batch.bin", ROW[:-1], "its length must be a multiple of 3073 bytes and"),
    (
        1,
        "test_batch.bin",
        b"\x0a" + ROW[1:],
        "labels must be from 0 to 9, got",
    ),
    (3, "test.bin", b"\x00\x64" + ROW[1:], "labels must be from 0 to 99, got"),
    (1, "batches.meta.txt", b"a b c", "it must have the names of 10 classes"),
    (0, "test_batch", b"", "it is not a pickle of protocol 2"),
    (0, "test_batch", pickle.dumps({}, 4), "it is not a pickle of protocol 2"),
    (0, "test_batch", python2({}), "data must be an array of uint8 with 3072 columns"),
    (
        *(0, "test_batch", python2({b"data": np.zeros((3, 3071), np.uint8)})),
        "data must be an array of uint8 with 3072 columns",
    ),
    (
        *(0, "test_batch", python2(BATCH | {b"labels": [1, 2]})),
        "labels must be a list of 3 labels",
    ),
    (
        *(0, "test_batch", python2(BATCH | {b"labels": [1, 2, 10]})),
        "labels must be from 0 to 9, got 10",
    ),
    (
        *(0, "test_batch", python2(BATCH | {b"labels": [1, 2, -1]})),
        "labels must be from 0 to 9, got -1",
    ),
    (
        *(0, "test_batch", python2(BATCH | {b"labels": [1, 2, True]})),
        "labels must be from 0 to 9, got a bool",
    ),
    (
        *(0, "test_batch", python2(BATCH | {b"labels": [1, 2, DEEP]})),
        "labels must be from 0 to 9, got a list",
    ),
    (
        *(0, "test_batch", python2(BATCH | {b"labels": [1, 2, 2**31 - 1]})),
        "labels must be from 0 to 9, got 2147483647",
    ),
    (
        *(2, "test", python2(BATCH)),
        "fine_labels must be a list of 3 labels",
    ),
    (0, "batches.meta", python2({b"label_names": NAMES10[:9]}), "names of 10 classes"),
    (0, "batches.meta", python2({b"label_names": [*range(10)]}), "names of 10 classes"),
    (0, "batches.meta", python2({}), "it must have the names of 10 classes"),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("number", "name", "raw", "message"), WRONG_CONTENT)
def test_wrong_content_is_named(tmp_path, number, name, raw, message):
    form = FORMS[number]
    made = contents(form) | {name: raw}
    for path in (
        write_archive(tmp_path, form, made),
        write_folder(tmp_path, form, made),
    ):
        pattern = f"^{re.escape(str(path))}, file {name}: .*{message}"
        with pytest.raises(ValueError, match=pattern):
            images.load(path)


@pytest.mark.usefixtures("small")
def test_the_number_of_images_is_checked(tmp_path):
    """A file of the binary form that was cut between two images."""
    folder = write_folder(tmp_path, FORMS[1], contents(FORMS[1]))
    path = folder / "data_batch_5.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    with pytest.raises(ValueError, match=r"5\.bin must have 10 images, got 9$"):
        images.load(tmp_path)


def link(member):
    if member.name.endswith("test_batch"):
        member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0


def far_away(member):
    if member.name.endswith("test_batch"):
        member.name = f"../{member.name}"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            link,
            "cifar-10-batches-py/test_batch must be a plain file of at most 2000000",
        ),
        (far_away, "must have the file cifar-10-batches-py/test_batch"),
        (
            "large",
            "cifar-10-batches-py/data_batch_1 must be a plain file of at most 99",
        ),
        ("cut", "cannot be read: "),
        ("not zipped", "cannot be read: "),
        ("empty", "cannot be read: "),
    ],
)
def test_wrong_archives_are_refused(tmp_path, monkeypatch, how, message):
    change = how if callable(how) else lambda member: None
    path = write_archive(tmp_path, FORMS[0], contents(FORMS[0]), change=change)
    raw = path.read_bytes()
    other = {
        "cut": raw[: len(raw) // 2],
        "not zipped": b"<html>Not Found</html>" * 99,
        "empty": b"",
    }
    path.write_bytes(other.get(how, raw))
    set_digests(path)
    if how == "large":
        monkeypatch.setattr(cifar_archives, "read_whole", Path.read_bytes)
        monkeypatch.setattr(cifar_archives, "LARGEST", 99)
    with pytest.raises(ValueError, match=re.escape(f"{path}") + f".*{message}"):
        images.load(tmp_path)


@pytest.mark.usefixtures("small")
def test_large_and_missing_files_are_refused(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, FORMS[3], contents(FORMS[3]))
    with monkeypatch.context() as context:
        context.setattr(cifar_archives, "LARGEST", 99)
        message = r"train\.bin must have at most 99 bytes, got 30740"
        with pytest.raises(ValueError, match=message):
            images.load(tmp_path)
    (folder / "test.bin").unlink()
    message = r"cifar-100-binary must have the file test\.bin: get it from https:"
    with pytest.raises(ValueError, match=message):
        images.load(tmp_path)


# What is found where.


def test_without_images_one_sentence_says_where_to_get_them(tmp_path):
    for path, problem in (
        (tmp_path, "has no images to read"),
        (tmp_path / "no", "does not exist"),
    ):
        with pytest.raises(ValueError, match=r"or \*\.jpg\)$") as caught:
            images.find(path)
        text = str(caught.value)
        where = "get cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/"
        assert text.startswith(f"{path} {problem}: {where}")
        assert "(looked for cifar-10-python.tar.gz, " in text
        assert "\n" not in text


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "cifar.zip"
    path.touch()
    message = "must be a folder or have the name of an official archive"
    with pytest.raises(ValueError, match=message):
        images.load(path)


def test_two_data_sets_in_a_folder_are_a_question(tmp_path):
    for form in FORMS[:2]:  # two forms of one data set
        (tmp_path / form.archive).touch()
        (tmp_path / form.folder).mkdir()
        (tmp_path / form.folder / form.test).touch()
    assert images.find(tmp_path) == (
        *("CIFAR-10", tmp_path / "cifar-10-python.tar.gz"),
        FORMS[0],
    )
    (tmp_path / FORMS[3].archive).touch()
    message = "must hold one data set, got CIFAR-10 and CIFAR-100: give the path of one"
    with pytest.raises(ValueError, match=message):
        images.find(tmp_path)
    assert images.find(tmp_path / FORMS[3].archive).form == FORMS[3]
    (tmp_path / FORMS[3].archive).unlink()
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="got CIFAR-10 and folders of images: give"):
        images.find(tmp_path)


def test_errors_of_the_system_are_one_sentence(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    write_images(tmp_path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    place = re.escape(str(tmp_path / "train"))
    with pytest.raises(
        ValueError, match=f"^{place} cannot be read: Permission denied$"
    ):
        images.load(tmp_path)
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ValueError, match=r"tar\.gz cannot be read: Permission denied$"):
        images.find(tmp_path)


# Folders of images.


def write_images(place, test="test", ending="png", size=(4, 4)):
    """Two classes, with 2 and 3 images for training and 1 each for the test."""
    random = np.random.default_rng(0)
    made = {}
    for part, name, count in (
        *(("train", "b", 3), ("train", "a", 2)),
        *((test, "b", 1), (test, "a", 1)),
    ):
        folder = place / part / name
        folder.mkdir(parents=True)
        for number in reversed(range(count)):
            pixels = random.integers(256, size=(*size, 3), dtype=np.uint8)
            path = folder / f"{number}.{ending}"
            Image.fromarray(pixels).save(path)
            made[f"{part}/{name}/{number}"] = path, pixels
    return made


@pytest.mark.parametrize(
    ("test", "ending", "size"),
    [("test", "png", (32, 32)), ("val", "jpg", (8, 8)), ("test", "JPEG", (5, 7))],
)
def test_reads_folders_of_images(tmp_path, test, ending, size):
    made = write_images(tmp_path, test, ending, size)
    hidden = [".DS_Store", "train/.cache/0.png", "train/a/._0.png", f"{test}/a/.1.jpg"]
    for name in [*hidden, "train/readme.txt", "train/a/labels.csv"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    data = images.load(tmp_path)
    ordered = ["train/a/0", "train/a/1", "train/b/0", "train/b/1", "train/b/2"]
    for names, x, y, labels in (
        (ordered, data.train_images, data.train_labels, [0, 0, 1, 1, 1]),
        ([f"{test}/a/0", f"{test}/b/0"], data.test_images, data.test_labels, [0, 1]),
    ):
        pixels = [made[name][1] for name in names]
        if ending != "png":  # JPEG loses detail: the oracle is each file by itself
            pixels = [np.asarray(Image.open(made[name][0])) for name in names]
        np.testing.assert_array_equal(x, pixels)
        np.testing.assert_array_equal(y, labels)
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
    assert data.classes == ["a", "b"]
    counts = f"5 training and 2 test images of {size[1]}x{size[0]} pixels in 2 classes"
    assert data.source == f"{counts} from {tmp_path / 'train'} and {tmp_path / test}"


def grid(mode, values, **more):
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    for name, value in more.items():
        getattr(image, name)(value)
    return image


PALETTE = [1, 2, 3, 4, 5, 6]
MODES = [
    (grid("RGB", [(1, 2, 3), (4, 5, 6)]), {}, [(1, 2, 3), (4, 5, 6)]),
    (grid("RGBA", [(1, 2, 3, 0), (4, 5, 6, 255)]), {}, [(1, 2, 3), (4, 5, 6)]),
    (grid("L", [0, 200]), {}, [(0, 0, 0), (200, 200, 200)]),
    (grid("LA", [(9, 0), (200, 255)]), {}, [(9, 9, 9), (200, 200, 200)]),
    (grid("1", [0, 1]), {}, [(0, 0, 0), (255, 255, 255)]),
    (grid("P", [1, 0], putpalette=PALETTE), {}, [(4, 5, 6), (1, 2, 3)]),
    (
        grid("P", [1, 0], putpalette=PALETTE),
        {"transparency": bytes([0, 255])},
        [(4, 5, 6), (1, 2, 3)],
    ),
]


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    MODES,
    ids=["RGB", "RGBA", "L", "LA", "1", "P", "PA"],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, image, options, expected):
    path = tmp_path / "image.png"
    image.save(path, **options)
    with Image.open(path) as written:
        assert written.mode == image.mode
        assert ("transparency" in written.info) == bool(options)
    pixels = images.read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[list(color) for color in expected]]


def test_gray_jpeg_becomes_rgb(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("L", (8, 8), 77).save(path)
    np.testing.assert_array_equal(images.read_image(path), np.full((8, 8, 3), 77))


def save_as(format, mode="RGB", size=(4, 4)):
    def change(path):
        Image.new(mode, size).save(path, format=format)

    return change


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def no_image(path):
    path.write_bytes(b"<html>")


def leave_the_folder_empty(path):
    path.unlink()


def bomb(path):
    """Makes a small file say that it has 12,000 x 12,000 pixels."""
    raw = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 12_000, 12_000) + raw[24:29]
    checksum = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(raw[:12] + header + checksum + raw[33:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "{path} cannot be read as an image: image file is truncated"),
        (no_image, "{path} is neither a PNG nor a JPEG image"),
        (save_as("bmp"), "{path} is neither a PNG nor a JPEG image"),
        (save_as("gif"), "{path} is neither a PNG nor a JPEG image"),
        (
            save_as("png", "I;16"),
            "{path} cannot be read as an image: its mode I;16 is ",
        ),
        (
            save_as("jpeg", "CMYK"),
            "{path} cannot be read as an image: its mode CMYK is",
        ),
        (
            save_as("png", size=(5, 4)),
            "same size, here 4x4 pixels, got 5x4 pixels in {path}",
        ),
        (bomb, "{path} cannot be read as an image: Image size (144000000 pixels) exce"),
        (leave_the_folder_empty, "{path.parent} must have images (.png, .jpg, .jpeg)"),
    ],
)
def test_wrong_images_are_named(tmp_path, change, message):
    write_images(tmp_path)
    path = tmp_path / "test" / "b" / "0.png"
    change(path)
    with pytest.raises(ValueError, match=re.escape(message.format(path=path))):
        images.load(tmp_path)


def test_wrong_folders_are_named(tmp_path, monkeypatch):
    def refused(message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            images.load(tmp_path)

    (tmp_path / "train").mkdir()
    refused(f"{tmp_path} must have the folder test or val beside train")
    (tmp_path / "test").mkdir()
    refused(f"{tmp_path / 'train'} must have a folder of images for each class")
    for name in "train", "test":
        (tmp_path / name).rmdir()
    write_images(tmp_path)
    monkeypatch.setattr(images, "MOST_BYTES", 5 * 4 * 4 * 3 - 1)
    rule = "images are held in memory, so they must have at most 239 bytes"
    refused(f"{rule}, got 5 images of 4x4 pixels in {tmp_path / 'train'}")
    monkeypatch.setattr(images, "MOST_BYTES", 5 * 4 * 4 * 3)
    assert len(images.load(tmp_path).train_images) == 5
    (tmp_path / "test" / "a").rename(tmp_path / "test" / "c")
    same = "train and test must have folders of the same classes, but only one of them"
    refused(f"{tmp_path}: {same} has a")


def test_damaged_images_are_read_or_refused(tmp_path):
    random = np.random.default_rng(0)
    for ending in "png", "jpg":
        path = tmp_path / f"image.{ending}"
        pixels = random.integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        raw, outcomes = path.read_bytes(), []
        for number in range(100):
            damaged = bytearray(raw)
            for place in random.integers(len(raw), size=1 + number % 4):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged[: random.integers(20, len(raw) * 2)])
            try:
                outcomes.append(type(images.read_image(path)))
            except ValueError:
                outcomes.append(ValueError)
        assert ValueError in outcomes
        # PNG has checksums, and JPEG has none.
        assert (np.ndarray in outcomes) == (ending == "jpg")
