"""The masks written down once more, in NumPy, one element at a time in the formulas."""

import math

import numpy as np

ODD, LEAF_STRIDE, WORD = 0xED5AD4BB, 0x9E3779B1, 2**32
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUND_CONSTANTS = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


def step_words(key: tuple[int, int], step: int) -> tuple[int, int]:
    """The words that update number `step` draws from, `key` being those of `init`."""
    return mixed(*later(key, step))


def later(key: tuple[int, int], step: int) -> tuple[int, int]:
    """The words in the state before update number `step`."""
    left, right = ((k + step * c) % WORD for k, c in zip(key, WEYL, strict=True))
    return left, right


def mixed(left: int, right: int) -> tuple[int, int]:
    for constant in ROUND_CONSTANTS:
        left, right = right, left ^ scramble((right + constant) % WORD)
    return left, right


def shard_words(words: tuple[int, int], places: tuple[int, ...]) -> tuple[int, int]:
    """The words of a shard, from its place along each axis, sorted by their names."""
    for place in places:
        words = mixed((words[0] + place) % WORD, words[1] ^ place)
    return words


def scramble(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D % WORD
    x = (x ^ x >> 15) * 0x846CA68B % WORD
    return x ^ x >> 16


def slice_words(words: tuple[int, int], leaf: int, number: int) -> tuple[int, int]:
    """The words of a slice, for `draws` with leaf -1, if a leaf has more than one."""
    first = words[0] + (leaf + 1) * LEAF_STRIDE + number
    return scramble(first % WORD), scramble(words[1] ^ number)


def draws(
    words: tuple[int, int], leaf: int, index: np.ndarray, second_alone: bool = False
) -> np.ndarray:
    """The draws of leaf number `leaf`. `second_alone` plants a bug: see the tests."""
    step = index.astype(np.uint64) * ODD % WORD
    x = (step + words[0] + (leaf + 1) * LEAF_STRIDE) % WORD
    x = (x ^ x >> 16) * ODD % WORD
    x = (x + (words[1] if second_alone else step ^ words[1])) % WORD
    x = (x ^ x >> 16) * ODD % WORD
    return (x ^ x >> 16) * ODD % WORD


def mask(
    words: tuple[int, int],
    leaf: int,
    shape: tuple[int, ...],
    keep_prob: float,
    axes: tuple[int, ...] | None = None,
) -> np.ndarray:
    """The mask of a leaf. Decisions differ along `axes`, by default along all."""
    limit = math.ceil(float(np.float32(keep_prob)) * 2**24)
    return draws(words, leaf, index(shape, axes)) >> 8 < limit


def index(shape: tuple[int, ...], axes: tuple[int, ...] | None = None) -> np.ndarray:
    """The number of the decision for each element, counted along `axes`."""
    axes = tuple(range(len(shape))) if axes is None else axes
    if not axes:
        return np.zeros(shape, np.int64)
    places = [np.indices(shape)[axis] for axis in axes]
    sizes = tuple(shape[axis] for axis in axes)
    return np.ravel_multi_index(places, sizes) if math.prod(shape) else places[0]


def cycle_mask(
    key: tuple[int, int],
    hold: int,
    leaf: int,
    shape: tuple[int, ...],
    length: int,
    axes: tuple[int, ...] | None = None,
) -> np.ndarray:
    """The mask of hold number `hold`, whose cycle draws from its first key."""
    place = hold % length
    drawn = draws(step_words(key, hold - place), leaf, index(shape, axes)) >> 8
    size, rest = divmod(2**24, length)
    bounds = np.cumsum([0] + [size + 1] * rest + [size] * (length - rest))
    return (drawn >= bounds[place]) & (drawn < bounds[place + 1])
