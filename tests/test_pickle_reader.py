"""The reader of pickles: what Python 2 and NumPy write, and what a stranger may write.

Nothing that a file names may be imported or called, each mistake must be a ValueError,
and no file may take more memory than a small multiple of its size.
"""

import hashlib
import pickle
import pickletools
import re
import sys
import tracemalloc
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from python2_pickle import python2

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
try:
    import pickle_reader
    from pickle_reader import read_pickle
finally:
    del sys.path[0]

TABLE = np.random.default_rng(0).integers(256, size=(4, 7), dtype=np.uint8)
NAMES = b"airplane automobile bird cat deer dog frog horse ship truck".split()


def test_the_official_names_are_read():
    """batches.meta of CIFAR-10 is known so well that it is made again, with its MD5."""
    meta = {b"num_cases_per_batch": 10_000, b"label_names": NAMES, b"num_vis": 3072}
    raw = python2(meta)
    assert hashlib.md5(raw).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"
    assert read_pickle(raw) == {key.decode(): value for key, value in meta.items()}


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("write", [python2, lambda value: pickle.dumps(value, 2)])
def test_what_python_2_and_numpy_write_is_read(write, order):
    values = {
        b"empty": [[], {}, ()],
        b"tuples": [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        b"integers": [0, 255, 256, 65_535, 65_536, -1, 2**31 - 1, -(2**31)],
        b"constants": [None, True, False],
        b"text": [b"", b"a" * 255, b"a" * 256, bytes(range(256))],
        b"inner": {b"key": [1]},
        b"one": [7],
    }
    if write is not python2:
        del values[b"text"][0]  # Python 3 writes it as a call of bytes
    table = np.asarray(TABLE, order=order)
    found = read_pickle(write({b"data": table, **values}))
    np.testing.assert_array_equal(found.pop("data"), TABLE)
    values[b"inner"] = {"key": [1]}  # keys become str
    assert found == {key.decode(): value for key, value in values.items()}


def test_what_is_pickled_twice_is_one_object():
    names = [b"a"]
    found = read_pickle(
        pickle.dumps({"a": names, "b": names, "x": TABLE, "y": TABLE}, 2)
    )
    assert found["a"] is found["b"]
    assert found["x"] is found["y"]
    np.testing.assert_array_equal(found["x"], TABLE)


def test_large_integers_and_many_memos():
    numbers = [2**31, -(2**40), 2**2000]
    texts = [b"%d" % number for number in range(600)]
    values = {"numbers": numbers, "texts": texts, "again": texts[-300:]}
    raw = pickle.dumps(values, 2)
    names = {op.name for op, _, _ in pickletools.genops(raw)}
    assert {"LONG1", "LONG_BINPUT", "LONG_BINGET"} <= names
    assert read_pickle(raw) == values


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_are_refused(protocol):
    with pytest.raises(ValueError, match=r"^it is not a pickle of protocol 2$"):
        read_pickle(pickle.dumps({"data": TABLE}, protocol))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.int8),
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3), object),
        np.zeros((2, 3), [("a", "u1")]),
        np.zeros((2, 3), "S1"),
        np.zeros(6, np.uint8),
        np.zeros((1, 2, 3), np.uint8),
        np.zeros((0, 3), np.uint8),
        np.float64(1),
    ],
    ids=lambda array: f"{array.dtype}-{array.ndim}",
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match=r"it (calls|names|holds|has) "):
        read_pickle(pickle.dumps({"data": array}, 2))


# What a stranger may write. `run` is what the usual reader would run.

RUN = b"cos\nsystem\n"
DTYPE = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
NEW = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
ENCODE = b"c_codecs\nencode\n"


def filled(shape=b"K\x02K\x03\x86", dtype=DTYPE, data=b"U\x06abcdef", version=b"K\x01"):
    return NEW + b"(" + version + shape + dtype + b"\x89" + data + b"tb"


def test_the_parts_of_the_hostile_pickles_are_right():
    """So that each is refused for what is wrong with it, and nothing else."""
    found = read_pickle(b"\x80\x02}U\x01d" + filled() + b"s.")
    assert found["d"].tobytes() == b"abcdef"
    text = ENCODE + b"(X\x02\0\0\0\xc3\xa9X\x06\0\0\0latin1tR"
    assert read_pickle(b"\x80\x02}U\x01d" + text + b"s.") == {"d": b"\xe9"}


FITS = "the shape of its array does not fit 6 bytes"
CALLS = "it calls something else than NumPy does for an array of uint8"
HOLDS = "it holds an array that is not of uint8 with two axes"
EARLY = "it ends too early"
POP = "it takes more from the stack than there is"
HOSTILE = {
    "command": (RUN + b"(U\x07echo hitR", "it names 'os.system', which no file of im"),
    "eval": (b"c__builtin__\neval\n(U\x011tR", "it names '__builtin__.eval', which no"),
    "import": (b"cthis\ns\n", "it names 'this.s', which no file of images needs"),
    "trick": (b"cnumpy.dtype\n\n", "it names 'numpy.dtype.', which no file of imag"),
    "deep name": (b"cnumpy\ncore.multiarray._reconstruct\n(tR", CALLS),
    "long name": (b"c" + b"a" * 10**6, "it names 'aaaaa"),
    "instance": (b"(ios\nsystem\n", "it has the opcode INST, which no file of images"),
    "object": (
        b"(" + RUN + b"o",
        "it names 'os.system', which no file of images needs",
    ),
    "new object": (
        DTYPE + b")\x81",
        "it has the opcode NEWOBJ, which no file of image",
    ),
    "extension": (b"\x82\x01", "it has the opcode EXT1, which no file of images needs"),
    "persistent": (b"Pos\n", "it has the opcode PERSID, which no file of images needs"),
    "other": (b"\xff", "it has the opcode 0xff, which no file of images needs"),
    "nested call": (b"cnumpy\ndtype\n(" + DTYPE + b"K\x00K\x01tR", CALLS),
    "call of a list": (b"]" + b"(tR", CALLS),
    "call of a string": (b"U\x09os.system(tR", CALLS),
    "other type": (b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR", CALLS),
    "other encoding": (ENCODE + b"(X\x01\0\0\0aX\x03\0\0\0hextR", CALLS),
    "other class": (NEW.replace(b"ndarray", b"dtype"), CALLS),
    "too few bytes": (filled(shape=b"K\x02K\x04\x86"), FITS),
    "too many bytes": (filled(shape=b"K\x01K\x03\x86"), FITS),
    "negative": (filled(shape=b"J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86"), FITS),
    "huge shape": (filled(shape=b"\x8a\xff" + b"\x7f" * 255 + b"K\x03\x86"), FITS),
    "one axis": (filled(shape=b"K\x06\x85"), HOLDS),
    "no shape": (filled(shape=b"N"), HOLDS),
    "no type": (filled(dtype=b"N"), HOLDS),
    "raw type": (filled(dtype=b"U\x02u1"), HOLDS),
    "no bytes": (filled(data=b"]"), HOLDS),
    "objects": (filled(data=b"](K\x01K\x02e"), HOLDS),
    "version": (filled(version=b"K\x02"), HOLDS),
    "twice": (filled() + filled()[len(NEW) :], HOLDS),
    "build of a dict": (b"}}b", HOLDS),
    "fields": (DTYPE + b"(K\x03U\x01|N](U\x01ae}tb", HOLDS),
    "memo": (b"h\x07", "it reads memo 7, which it has not written"),
    "long memo": (b"j\xff\xff\xff\xff", "it reads memo 4294967295, which it has not "),
    "nothing to keep": (b"(q\x01", "its stack does not end with what it uses (object)"),
    "huge string": (b"T\xff\xff\xff\x7fabc", EARLY),
    "negative string": (b"T\xff\xff\xff\xffabc", EARLY),
    "huge text": (b"X\xff\xff\xff\xffabc", EARLY),
    "short string": (b"U\x04abc", EARLY),
    "short number": (b"J\x00", EARLY),
    "no end": (b"N", EARLY),
    "empty": (b"", EARLY),
    "no dict": (b"N.", "its stack does not end with what it uses (dict)"),
    "nothing": (b".", "its stack does not end with what it uses (dict)"),
    "no mark": (b"t", "it goes back to a mark, but there is none"),
    "behind a mark": (b"K\x01(R", POP),
    "tuple": (b"K\x01\x87", POP),
    "append": (b"K\x01K\x02a", "its stack does not end with what it uses (list)"),
    "item": (b"]K\x01K\x02s", "its stack does not end with what it uses (dict)"),
    "key": (b"}]K\x02s", "its keys must be strings of at most 100 bytes"),
    "odd": (b"}(U\x01au", "it has a key without a value"),
    "text": (b"X\x01\0\0\0\xff", "'utf-8' codec can't decode byte"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name):
    body, message = HOSTILE[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_pickle(b"\x80\x02" + body)
    assert "this" not in sys.modules  # which prints a poem when it is imported


def test_the_usual_reader_would_run_a_command(tmp_path, monkeypatch):
    """What shows that a hostile pickle is one; ours does not run the command."""
    monkeypatch.chdir(tmp_path)
    command = b"touch was_run"
    raw = b"\x80\x02" + RUN + b"(U" + bytes([len(command)]) + command + b"tR."
    with pytest.raises(ValueError, match=r"it names '(os|posix)\.system'"):
        read_pickle(raw)
    assert list(tmp_path.iterdir()) == []
    pickle.loads(raw)
    assert [path.name for path in tmp_path.iterdir()] == ["was_run"]


@pytest.fixture
def peak():
    """Returns a function that reads a pickle: -> the bytes of memory it took."""
    tracemalloc.start()

    def measure(raw, message):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        if message is None:
            read_pickle(raw)
        else:
            with pytest.raises(ValueError, match=message):
                read_pickle(raw)
        return tracemalloc.get_traced_memory()[1] - before

    yield measure
    tracemalloc.stop()


def test_memory_stays_small(peak):
    start, count = b"\x80\x02", 20_000
    # One string of a megabyte, which is encoded or decoded again and again.
    text = ENCODE + b"q\x00X" + pack("<I", 10**6) + b"a" * 10**6 + b"q\x01"
    again = b"h\x00h\x01X\x06\0\0\0latin1\x86R" * count
    assert (
        peak(start + b"(" + text + again, "it encodes a string more than once") < 10**7
    )
    text = b"T" + pack("<I", 10**6) + b"a" * 10**6 + b"q\x01"
    again = b"}h\x01Ns" * count
    assert peak(start + b"(" + text + again, "its keys must be strings of at") < 10**7
    # Tuples of tuples: what is printed or compared would have 2^20000 parts.
    doubled = b")" + b"q\x00h\x00\x86" * count
    assert peak(start + b"}U\x01a" + doubled + b"s.", None) < 10**7
    for opcode in b"]", b"}", b"(":
        assert peak(start + opcode * count, "it ends too early") < 10**7
    for nested in (b"]" * count + b"a" * (count - 1), b"(" * count + b"t" * count):
        assert peak(start + b"}U\x01a" + nested + b"s.", None) < 10**7


def test_the_number_of_opcodes_is_limited(monkeypatch):
    monkeypatch.setattr(pickle_reader, "MOST_OPCODES", 1000)
    raw = b"\x80\x02" + b"}" * 999
    assert read_pickle(raw + b".") == {}
    with pytest.raises(ValueError, match=r"^it has more than 1,000 opcodes$"):
        read_pickle(raw + b"}.")


VALID = [
    write({b"data": TABLE, b"labels": [1, 2, 300, -4], b"names": [b"a", b"b" * 300]})
    for write in (python2, lambda value: pickle.dumps(value, 2))
]
OPCODES = [ord(op.code) for op in pickletools.opcodes]


@st.composite
def changed(draw):
    """A valid pickle, of which parts are replaced, left out or repeated."""
    raw = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        start, stop = sorted(draw(st.integers(2, len(raw))) for _ in range(2))
        other = draw(st.binary(max_size=6))
        part = draw(st.sampled_from([b"", other, raw[start:stop] * 2]))
        stop = draw(st.sampled_from([start, stop, min(start + 1, len(raw))]))
        raw = raw[:start] + part + raw[stop:]
    return raw


def outcome(raw):
    try:
        return type(read_pickle(raw))
    except ValueError as error:
        assert len(str(error)) < 1000  # noqa: PT017
        return ValueError


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(changed() | st.lists(st.sampled_from(OPCODES), max_size=40).map(bytes))
def test_whatever_is_changed_is_read_or_refused(raw):
    tracemalloc.start()
    try:
        assert outcome(b"\x80\x02" + raw[2:]) in (dict, ValueError)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_each_byte_is_changed_and_each_end_is_cut_off():
    outcomes = []
    for raw in VALID:
        for place in range(len(raw)):
            outcomes.append(outcome(raw[:place]))
            for value in 0, 40, 46, 66, 255, raw[place] ^ 1:
                changed = raw[:place] + bytes([value]) + raw[place + 1 :]
                outcomes.append(outcome(changed))
    assert set(outcomes) == {dict, ValueError}
