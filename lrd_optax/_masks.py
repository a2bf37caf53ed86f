"""Which elements are kept: a pure function of (two words, leaf number, element index).

Nothing is drawn in advance and nothing is stored. Every element hashes its own global
index with the words of the step and the number of its leaf, and is kept if the hash is
in a window. This is elementwise, so XLA fuses it into the update that uses it. It
needs no memory, and no communication under any sharding, and it gives the same bits on
one device and on many. It has three separate parts:

  `element_index`  the index of an element; those that are decided together share one
  `draw`           a uniform integer for an index
  `is_kept`        whether a draw means "kept"

Each of their operations costs compile time, once per leaf, on every platform. So there
are few: one multiplier and one shift serve all of `draw`. docs/accelerators.md lists
the forms that were tried, and what XLA makes of each.
"""

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lrd_optax import _keys, _meshes

_THRESHOLD_BITS = 24  # so that 0 ("never") and 2**24 ("always") both fit in uint32
_LOW_BITS = np.uint32(32 - _THRESHOLD_BITS)
_INDEX_LIMIT = 2**32
_ODD = np.uint32(0xED5AD4BB)  # from "triple32": C. Wellons, Hash Prospector, 2018
_SHIFT = np.uint32(16)
_LEAF_STRIDE = 0x9E3779B1  # prime, about 2**32 / golden ratio


@jax.tree_util.register_static
class Fixed(int):
    """An integer that the compiler knows: ``jit`` makes it part of the program."""


Axes: TypeAlias = tuple[int, ...]

Sharding: TypeAlias = jax.sharding.NamedSharding | None

Whole: TypeAlias = Fixed | jax.Array
"""A whole number at least 0, ``uint32`` if it is an array."""

ALL = Fixed(2**_THRESHOLD_BITS)


class Window(NamedTuple):
    """The draws that mean "kept", of the 2**24 that are possible.

    They are the `limit` draws from `start` on. A start of None is 0.
    """

    limit: Whole
    start: jax.Array | None = None

    @property
    def keeps_all(self) -> bool:
        return isinstance(self.limit, int) and self.limit == ALL


def leaf_mask(
    words: _keys.Words, position: int, leaf: Any, axes: Axes, window: Window
) -> jax.Array:
    """Returns the mask of the leaf at `position` in its tree: True is kept.

    The words are those of `_meshes.varying_axes`. Decisions differ along `axes`.
    """
    aval = jax.typeof(leaf)
    sharding = _meshes.explicit_sharding(leaf, aval)
    number = _leaf_number(position)
    return _leaf_mask(words, number, window, aval.shape, axes, sharding)


def _leaf_number(position: int) -> np.ndarray:
    # On CPU and GPU a scalar would become a constant of the kernel, and each leaf would
    # need its own kernel. An array is an argument, so leaves of one shape share theirs.
    # It has two different elements, since XLA turns one, or two equal ones, into a
    # scalar.
    number = (position + 1) * _LEAF_STRIDE % 2**32
    return np.array([number, number ^ 1], np.uint32)


# Traced once per shape.
@functools.partial(jax.jit, static_argnames=("shape", "axes", "sharding"))
def _leaf_mask(
    words: _keys.Words,
    number: Any,
    window: Window,
    shape: Any,
    axes: Axes,
    sharding: Sharding,
) -> jax.Array:
    first, second = words

    def tpu() -> tuple[jax.Array, jax.Array | None, jax.Array]:
        # There a scalar costs nothing, and an array would cost a kernel per leaf.
        return first + number[0], *element_index(shape, axes, sharding, on_tpu=True)

    def elsewhere() -> tuple[jax.Array, jax.Array | None, jax.Array]:
        return (first + number)[0], *element_index(shape, axes, sharding)

    start, part, index = jax.lax.platform_dependent(tpu=tpu, default=elsewhere)
    if part is not None:
        start, second = _keys.scramble(start + part), _keys.scramble(second ^ part)
    return is_kept(draw(index, start, second), window)


def element_index(
    shape: tuple[Any, ...], axes: Axes, sharding: Sharding = None, on_tpu: bool = False
) -> tuple[jax.Array | None, jax.Array]:
    """Returns the global index of every element, as (slice, index in it), uint32.

    The index counts in row-major order over `axes` of the whole (global, unsharded)
    shape. A slice spans as many of the last axes as 32 bits can number. It is None if
    there is one slice. Symbolic dimensions are taken as one slice.
    """
    sizes = [shape[axis] for axis in axes]
    rank = 0
    if all(isinstance(size, int) for size in sizes):
        spans = [math.prod(sizes[n:]) for n in range(len(sizes) + 1)]
        rank = next(n for n, span in enumerate(spans) if span <= _INDEX_LIMIT)
        if math.prod(sizes[:rank]) > _INDEX_LIMIT or (sizes and rank == len(sizes)):
            raise ValueError(
                "a leaf must have at most 2**32 slices of at most 2**32 elements, "
                f"got shape {shape}"
            )
    every = tuple(range(len(shape)))
    if on_tpu and axes == every and not rank and sharding is None:
        return None, _flat_index(shape)
    anchor = _anchor(shape, sharding) if on_tpu and axes not in ((), every) else None
    part = _count(shape, axes[:rank], sharding, anchor) if rank else None
    return part, _count(shape, axes[rank:], sharding, anchor)


def _flat_index(shape: tuple[Any, ...]) -> jax.Array:
    # XLA for TPU computes the i * d of Horner's rule in kernels of their own, and
    # merges the leaves that share them. It does not merge leaves that use one flat
    # iota. On other platforms every device would compute all of a flat iota if the
    # columns are sharded.
    return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def _anchor(shape: tuple[Any, ...], sharding: Sharding) -> jax.Array | None:
    # XLA for TPU would draw for each row or column in one more kernel per leaf. It does
    # not if the index has a part of the leaf's shape: a 0 that it does not know.
    known = all(isinstance(size, int) for size in shape)
    if known and math.prod(shape) > _INDEX_LIMIT:
        return None  # one kernel is little for such a leaf
    every = tuple(range(len(shape)))
    flat = sharding is None
    whole = _flat_index(shape) if flat else _count(shape, every, sharding)
    return whole & jax.lax.optimization_barrier(jnp.uint32(0))


def _count(
    shape: tuple[Any, ...],
    axes: Axes,
    sharding: Sharding,
    anchor: jax.Array | None = None,
) -> jax.Array:
    """Returns the index along `axes`, by Horner's rule: ((i d + j) e + k).

    An anchor, of zeros, is added to the first place.
    """
    index = None
    for axis in axes:
        size: Any = shape[axis]
        if isinstance(size, int) and size == 1:
            continue
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)
        if index is not None:
            known = isinstance(size, int)  # it may be too large for int32
            factor = np.uint32(size) if known else jnp.asarray(size).astype(jnp.uint32)
            place = index * factor + place
        elif anchor is not None:
            place = place + anchor
        index = place
    if index is None:
        return jnp.zeros(shape, jnp.uint32, out_sharding=sharding)
    return index


def draw(index: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns a uniform integer in [0, 2**32), uint32, for every index.

    Three rounds of xorshift and multiply hash a Weyl sequence (multiples of an odd
    constant) that begins at `first`. `second` enters after the first round, together
    with the index, for two reasons. Leaves whose parts of the sequence overlap still
    share nothing. And the draw is a random function of the index, not a permutation, so
    the number of kept elements is binomial in huge leaves too.
    """
    step = index * _ODD
    x = step + first
    x = x ^ (x >> _SHIFT)
    x = x * _ODD + (step ^ second)
    x = x ^ (x >> _SHIFT)
    x = x * _ODD
    x = x ^ (x >> _SHIFT)
    return x * _ODD  # the high bits are the well mixed ones


def is_kept(drawn: jax.Array, window: Window) -> jax.Array:
    """Returns whether the high 24 bits of a draw are in the window."""
    limit, start = window
    if start is not None:  # draws below the start wrap around, to beyond the limit
        drawn = drawn - (start << _LOW_BITS)
    if isinstance(limit, int) and limit > 0:  # the same in one operation less
        return drawn <= np.uint32((limit << _LOW_BITS) - 1)
    return drawn >> _LOW_BITS < jnp.asarray(limit, jnp.uint32)


def threshold(keep_prob: jax.typing.ArrayLike) -> Whole:
    """Returns how many draws are kept at a probability, `Fixed` if it is a number.

    It is computed in float32, whatever the dtype and configuration, so that the masks
    never depend on them. Outside of [0, 1] it saturates; NaN keeps nothing.
    """
    if isinstance(keep_prob, (int, float)):
        limit = Fixed(max(1, np.ceil(np.float32(keep_prob) * 2**_THRESHOLD_BITS)))
        return ALL if limit == ALL else limit
    prob = jnp.asarray(keep_prob).astype(jnp.float32)
    prob = jnp.where(prob > 0, jnp.minimum(prob, 1), 0)
    return jnp.ceil(prob * 2**_THRESHOLD_BITS).astype(jnp.uint32)


def cycle_length(keep_prob: jax.typing.ArrayLike) -> Whole:
    """Returns 1 / `keep_prob`, rounded to a whole number."""
    if isinstance(keep_prob, (int, float)):
        return Fixed(round(1 / keep_prob))
    prob = jnp.asarray(keep_prob).astype(jnp.float32)
    length = jnp.rint(1 / jnp.clip(prob, 2**-_THRESHOLD_BITS, 1))
    return jnp.where(prob > 0, length, 0).astype(jnp.uint32)  # 0: nothing is kept


def cycle_window(hold: jax.Array, length: Whole) -> tuple[jax.Array, Window]:
    """Returns how many holds of its cycle are over at hold number `hold`, and a window.

    The windows of one cycle contain every draw once.
    """
    if isinstance(length, int) and ALL % length == 0:
        known = Fixed(ALL // length)
        place = hold % np.uint32(length)
        return place, Window(known, place * np.uint32(known) if known < ALL else None)
    holds = jnp.asarray(length, jnp.uint32)
    place = hold % jnp.maximum(holds, 1)
    size, rest = jnp.divmod(jnp.uint32(ALL), jnp.maximum(holds, 1))
    # The first ones have one draw more, if the length does not divide their number.
    limit = jnp.where(holds > 0, size + (place < rest).astype(jnp.uint32), 0)
    return place, Window(limit, place * size + jnp.minimum(place, rest))


def inverse_probability(limit: Whole, dtype: Any) -> jax.Array:
    """Returns 1 / (the probability that `is_kept` is True); never divides by 0."""
    count = jnp.maximum(jnp.asarray(limit, jnp.uint32), 1).astype(dtype)
    return 2**_THRESHOLD_BITS / count
