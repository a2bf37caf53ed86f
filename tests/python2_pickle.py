"""Writes pickles of protocol 2 as the module cPickle of Python 2 does."""

import itertools
from struct import pack

import numpy as np


def python2(value):
    """Returns a pickle of None, booleans, integers, bytes, containers and arrays."""
    numbers = itertools.count(1)

    def put():
        number = next(numbers)
        return b"q" + bytes([number]) if number < 256 else b"r" + pack("<I", number)

    def write(value):
        match value:
            case bool():
                return b"\x88" if value else b"\x89"
            case None:
                return b"N"
            case int():
                if 0 <= value < 256:
                    return b"K" + bytes([value])
                if 0 <= value < 2**16:
                    return b"M" + pack("<H", value)
                return b"J" + pack("<i", value)
            case bytes() if len(value) < 256:
                return b"U" + bytes([len(value)]) + value + put()
            case bytes():
                return b"T" + pack("<i", len(value)) + value + put()
            case tuple():
                body = b"".join(map(write, value))
                ends = {1: b"\x85", 2: b"\x86", 3: b"\x87"}
                if len(value) in ends:
                    return body + ends[len(value)] + put()
                return b"(" + body + b"t" + put()
            case list():
                return b"]" + put() + b"(" + b"".join(map(write, value)) + b"e"
            case dict():
                start, pairs = b"}" + put() + b"(", itertools.chain(*value.items())
                return start + b"".join(map(write, pairs)) + b"u"
            case np.ndarray():
                return write_array(value)

    def write_array(array):
        body = b"cnumpy.core.multiarray\n_reconstruct\n" + put()
        body += b"cnumpy\nndarray\n" + put() + write((0,)) + write(b"b") + b"\x87"
        body += put() + b"R" + put() + b"(" + write(1) + write(array.shape)
        body += b"cnumpy\ndtype\n" + put() + write((b"u1", 0, 1)) + b"R" + put()
        body += write((3, b"|", None, None, None, -1, -1, 0)) + b"b"
        is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        return (
            body + write(is_fortran) + write(array.tobytes("A")) + b"t" + put() + b"b"
        )

    return b"\x80\x02" + write(value) + b"."
