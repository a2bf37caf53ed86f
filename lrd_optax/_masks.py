"""Which elements are kept: a pure function of (key words, leaf, element index).

Nothing is drawn in advance and nothing is stored. Every element hashes its own
global index with the words of its leaf, and is kept if the hash is below a
threshold. That is elementwise, so XLA fuses it into the update that uses it: no
memory, no communication under any sharding, and the same bits on one device and
on many. The three parts are apart on purpose:

  `element_index`  which index an element has
  `draw`           a uniform integer for an index
  `threshold`      when a draw means "kept"
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

_DRAW_BITS = 24  # so that 0 and 2**24 ("never", "always") both fit in the compare
_INDEX_LIMIT = 2**32
_WEYL = 0x9E3779B1  # prime, about 2**32 / golden ratio
# Leaf n starts n * golden steps along the same Weyl sequence: as far from every other
# leaf as can be. The second word differs besides, so that leaves which overlap there
# (those of tens of millions of elements) share nothing.
_LEAF_STRIDES = (_WEYL * 0x9E3779B9 % 2**32, 0x85EBCA6B)


def leaf_mask(
    words: jax.Array,
    leaf: int,
    shape: tuple[int, ...],
    limit: jax.Array,
    sharding: jax.sharding.NamedSharding | None = None,
) -> jax.Array:
    """Returns the booleans of leaf number `leaf`: True where an element is kept.

    `sharding` is that of the leaf on a mesh with Explicit axes, else None.
    """
    # The leaf's number enters as an array constant and not as two scalars: XLA would
    # inline scalars, and then compile one kernel a leaf instead of one a shape.
    number = np.array([(leaf + 1) * odd % 2**32 for odd in _LEAF_STRIDES], np.uint32)
    mask: jax.Array = _leaf_mask(words, number, limit, shape, sharding)
    return mask


# Traced once a shape.
@functools.partial(jax.jit, static_argnames=("shape", "sharding"))
def _leaf_mask(
    words: jax.Array,
    number: jax.Array,
    limit: jax.Array,
    shape: tuple[int, ...],
    sharding: jax.sharding.NamedSharding | None,
) -> jax.Array:
    words = words + number
    first, second = words[0], words[1]
    row, index = element_index(shape, sharding)
    if row is not None:
        first, second = _scramble(first + row), _scramble(second ^ row)
    return draw(index, first, second) < limit


def element_index(
    shape: tuple[int, ...], sharding: jax.sharding.NamedSharding | None = None
) -> tuple[jax.Array | None, jax.Array]:
    """Returns the global index of every element, as (row, index in the row), uint32.

    The index counts in row-major order over the whole (global, unsharded) shape. A
    row is the longest run of trailing dimensions that 32 bits can number; it is None
    where one row holds everything.
    """
    rank = next(
        (i for i in range(len(shape)) if math.prod(shape[i:]) <= _INDEX_LIMIT),
        len(shape),
    )
    rows = math.prod(shape[:rank])
    if rows > _INDEX_LIMIT or (shape and rank == len(shape)):
        raise ValueError(
            "a leaf must have at most 2**32 rows of at most 2**32 elements, "
            f"got shape {shape}"
        )
    return (
        _count(shape, range(rank), sharding) if rank else None,
        _count(shape, range(rank, len(shape)), sharding),
    )


def _count(
    shape: tuple[int, ...],
    dims: range,
    sharding: jax.sharding.NamedSharding | None,
) -> jax.Array:
    terms, stride = [], 1
    for dim in reversed(dims):
        if shape[dim] > 1:
            position = jax.lax.broadcasted_iota(
                jnp.uint32, shape, dim, out_sharding=sharding
            )
            terms.append(position * np.uint32(stride) if stride > 1 else position)
        stride *= shape[dim]
    if not terms:
        return jnp.zeros(shape, jnp.uint32, out_sharding=sharding)
    return functools.reduce(jnp.add, terms)


def draw(index: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns a uniform integer in [0, 2**24), uint32, for every index.

    Multiply-xorshift rounds with the constants of the finaliser "triple32"
    (C. Wellons, Hash Prospector, 2018) over a Weyl sequence, a key word before the
    first and the second. Adding the start again in the middle makes it a random
    function of the index rather than a permutation, so that the number kept is
    binomial in huge leaves too.
    """
    start = index * np.uint32(_WEYL) + first
    x = start ^ (start >> np.uint32(17))
    x = x * np.uint32(0xED5AD4BB)
    x = x ^ (x >> np.uint32(11))
    x = x + (start ^ second)
    x = x * np.uint32(0xAC4C1B51)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x31848BAB)
    return x >> np.uint32(32 - _DRAW_BITS)  # the high bits are the well mixed ones


def threshold(keep_prob: jax.typing.ArrayLike) -> jax.Array:
    """Returns the uint32 below which a draw is kept, for a scalar in [0, 1].

    Computed in float32 whatever the dtype and configuration, so that the bits never
    depend on them. Outside of [0, 1] it saturates; NaN keeps nothing.
    """
    prob = jnp.asarray(keep_prob).astype(jnp.float32)
    prob = jnp.where(prob > 0, jnp.minimum(prob, 1), 0)
    return jnp.ceil(prob * 2**_DRAW_BITS).astype(jnp.uint32)


def _scramble(x: jax.Array) -> jax.Array:
    """The finaliser "lowbias32": a bijection of uint32 without visible structure."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
