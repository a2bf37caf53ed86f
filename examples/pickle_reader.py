"""Reads the pickles of CIFAR-10 and CIFAR-100 without running what is in them.

A pickle is a program for a stack machine, and the usual reader, `pickle.load`, calls
each function that the program names. So a file from a stranger can run any command.
This machine knows only the opcodes and the types that these files need: dicts, lists,
tuples, strings, integers, booleans, None, and tables of uint8 as NumPy writes them. It
imports nothing and calls nothing that the file names, and refuses all else.

`pickletools` of the standard library documents the opcodes.
"""

import io
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MOST_OPCODES = 1_000_000  # the training set of CIFAR-100 has some 200,000
LONGEST_KEY = 100  # a longer one, used for many dicts, would fill the memory
OPCODE_NAMES = {op.code.encode("latin1"): op.name for op in pickletools.opcodes}


class Global(NamedTuple):
    """The name of a function or type. It is compared, and never looked up."""

    name: str


GLOBALS = (
    "_codecs.encode",  # with it Python 3 writes bytes
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",  # since NumPy 2
    "numpy.dtype",
    "numpy.ndarray",
)
UINT8 = object()  # stands for the type of the values


@dataclass(eq=False)
class Table:
    """An array of two axes. A pickle makes it first, and fills it later."""

    values: np.ndarray | None = None


@dataclass
class Machine:
    stream: io.BytesIO
    stacks: list[list[Any]]  # the last one is in use; a mark begins another
    memo: dict[int, Any]
    encoded: int = 0  # how many bytes it has made of strings


def take(stream: io.BytesIO, count: int) -> bytes:
    raw = stream.read(count)  # no more than there is, however large the count
    if len(raw) < count:
        raise ValueError("it ends too early")
    return raw


def number(stream: io.BytesIO, form: str) -> int:
    return struct.unpack(form, take(stream, struct.calcsize(form)))[0]


def long_integer(stream: io.BytesIO) -> int:
    raw = take(stream, number(stream, "<B"))
    return int.from_bytes(raw, "little", signed=True)


def global_name(stream: io.BytesIO) -> Global:
    lines = [stream.readline(100).decode("latin1") for _ in range(2)]
    name = ".".join(line.removesuffix("\n") for line in lines)
    if name not in GLOBALS:
        raise ValueError(f"it names {name!r}, which no file of images needs")
    return Global(name)


# What the opcodes push that need the stream alone. A length is unsigned here: a
# negative one is then too large, and refused as such.
PUSH: dict[bytes, Callable[[io.BytesIO], Any]] = {
    b"N": lambda stream: None,
    b"\x88": lambda stream: True,
    b"\x89": lambda stream: False,
    b"K": lambda stream: number(stream, "<B"),
    b"M": lambda stream: number(stream, "<H"),
    b"J": lambda stream: number(stream, "<i"),
    b"\x8a": long_integer,
    b"U": lambda stream: take(stream, number(stream, "<B")),
    b"T": lambda stream: take(stream, number(stream, "<I")),
    b"X": lambda stream: take(stream, number(stream, "<I")).decode(),
    b"c": global_name,
    b")": lambda stream: (),
    b"]": lambda stream: [],
    b"}": lambda stream: {},
}
PUT, GET = {b"q": "<B", b"r": "<I"}, {b"h": "<B", b"j": "<I"}  # index in the memo
TUPLE_SIZES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


def pop(stack: list[Any], count: int) -> list[Any]:
    """Removes the last values, and returns them in the order they were pushed."""
    if len(stack) < count:
        raise ValueError("it takes more from the stack than there is")
    values = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return values


def pop_to_mark(stacks: list[list[Any]]) -> list[Any]:
    if len(stacks) == 1:
        raise ValueError("it goes back to a mark, but there is none")
    return stacks.pop()


def top(stack: list[Any], kind: type) -> Any:
    if not stack or not isinstance(stack[-1], kind):
        raise ValueError(f"its stack does not end with what it uses ({kind.__name__})")
    return stack[-1]


def add_items(target: dict[str, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("it has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes) or len(key) > LONGEST_KEY:
            raise ValueError(f"its keys must be strings of at most {LONGEST_KEY} bytes")
        target[key.decode("latin1") if isinstance(key, bytes) else key] = value


def call(machine: Machine, function: Any, args: Any) -> Any:
    """Returns what the call that a pickle asks for would give."""
    match function, args:
        case Global("_codecs.encode"), (str() as text, "latin1"):
            # One long string, encoded many times, would fill the memory.
            machine.encoded += len(text)
            if machine.encoded > machine.stream.tell():
                raise ValueError("it encodes a string more than once")
            return text.encode("latin1")
        case Global("numpy.dtype"), (b"u1" | "u1", int(), int()):
            return UINT8
        case (
            Global(
                "numpy.core.multiarray._reconstruct"
                | "numpy._core.multiarray._reconstruct"
            ),
            (Global("numpy.ndarray"), (0,), b"b" | "b"),
        ):
            return Table()
    raise ValueError("it calls something else than NumPy does for an array of uint8")


def build(target: Any, state: Any) -> None:
    """Gives a table its values. The state of uint8 itself says nothing new."""
    if target is UINT8 and isinstance(state, tuple):
        plain = (int, str, bytes, type(None))  # no fields and no inner shape
        if all(isinstance(value, plain) for value in state):
            return
    match target, state:
        case (
            Table(values=None),
            (
                1,
                (int() as rows, int() as columns),
                dtype,
                int() as order,
                bytes() as raw,
            ),
        ) if dtype is UINT8:
            if min(rows, columns) < 1 or rows * columns != len(raw):
                raise ValueError(
                    f"the shape of its array does not fit {len(raw)} bytes"
                )
            values = np.frombuffer(raw, np.uint8)
            target.values = values.reshape(rows, columns, order="F" if order else "C")
            return
    raise ValueError("it holds an array that is not of uint8 with two axes")


def step(machine: Machine, code: bytes) -> None:
    """Runs one opcode. A mark `(` puts the stack aside until its values are used."""
    stream, stacks, memo = machine.stream, machine.stacks, machine.memo
    stack = stacks[-1]
    if code in PUSH:
        stack.append(PUSH[code](stream))
    elif code in PUT:
        memo[number(stream, PUT[code])] = top(stack, object)
    elif code in GET:
        index = number(stream, GET[code])
        if index not in memo:
            raise ValueError(f"it reads memo {index}, which it has not written")
        stack.append(memo[index])
    elif code == b"(":
        stacks.append([])
    elif code in TUPLE_SIZES:
        stack.append(tuple(pop(stack, TUPLE_SIZES[code])))
    elif code == b"t":
        values = pop_to_mark(stacks)
        stacks[-1].append(tuple(values))
    elif code in b"ae":  # the item after a list, or all items after it
        items = pop(stack, 1) if code == b"a" else pop_to_mark(stacks)
        top(stacks[-1], list).extend(items)
    elif code in b"su":  # the key and the value after a dict, or all of them
        items = pop(stack, 2) if code == b"s" else pop_to_mark(stacks)
        add_items(top(stacks[-1], dict), items)
    elif code == b"R":
        stack.append(call(machine, *pop(stack, 2)))
    elif code == b"b":
        [state] = pop(stack, 1)
        build(top(stack, object), state)
    else:
        name = OPCODE_NAMES.get(code, f"0x{code.hex()}")
        raise ValueError(f"it has the opcode {name}, which no file of images needs")


def read_pickle(raw: bytes) -> dict[str, Any]:
    """Returns the dict in a pickle, or raises a ValueError that says what is wrong."""
    if raw[:2] != b"\x80\x02":
        raise ValueError("it is not a pickle of protocol 2")
    machine = Machine(io.BytesIO(raw), [[]], {})
    machine.stream.seek(2)
    for _ in range(MOST_OPCODES):
        code = take(machine.stream, 1)
        if code == b".":
            found = top(machine.stacks[-1], dict)
            return {
                k: v.values if isinstance(v, Table) else v for k, v in found.items()
            }
        step(machine, code)
    raise ValueError(f"it has more than {MOST_OPCODES:,} opcodes")
