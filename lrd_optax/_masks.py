"""Which elements are kept: a pure function of (two words, leaf number, element index).

Nothing is drawn in advance and nothing is stored. Every element hashes its own global
index with the words of the step and the number of its leaf, and is kept if the hash is
below a threshold. This is elementwise, so XLA fuses it into the update that uses it. It
needs no memory, and no communication under any sharding, and it gives the same bits on
one device and on many. It has three separate parts:

  `element_index`  the index of an element
  `draw`           a uniform integer for an index
  `is_kept`        whether a draw means "kept"

Each of their operations costs compile time, once per leaf, on every platform. So there
are few: one multiplier and one shift serve all of `draw`. docs/accelerators.md lists
the forms that were tried, and what XLA makes of each.
"""

import functools
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lrd_optax import _keys, _meshes

_THRESHOLD_BITS = 24  # so that 0 ("never") and 2**24 ("always") both fit in uint32
_INDEX_LIMIT = 2**32
_ODD = np.uint32(0xED5AD4BB)  # from "triple32": C. Wellons, Hash Prospector, 2018
_SHIFT = np.uint32(16)
_LEAF_STRIDE = 0x9E3779B1  # prime, about 2**32 / golden ratio


@jax.tree_util.register_static
class Fixed(int):
    """A `Limit` that the compiler knows: ``jit`` makes it part of the program."""


Sharding: TypeAlias = jax.sharding.NamedSharding | None

Limit: TypeAlias = Fixed | jax.Array
"""How many of the 2**24 possible draws mean "kept", see `is_kept`."""

ALL = Fixed(2**_THRESHOLD_BITS)


def tree_masks(words: _keys.Words, leaves: list[Any], limit: Limit) -> list[jax.Array]:
    """Returns the mask of every leaf: True where an element is kept."""
    words_of: dict[Any, _keys.Words] = {}  # by the mesh axes over which a leaf varies
    masks = []
    for n, leaf in enumerate(leaves):
        aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        axes = _meshes.varying_axes(aval)
        if axes not in words_of:
            words_of[axes] = _keys.shard_words(words, axes)
        sharding = _meshes.explicit_sharding(leaf, aval)
        number = _leaf_number(n)
        masks.append(_leaf_mask(words_of[axes], number, limit, aval.shape, sharding))
    return masks


def _leaf_number(position: int) -> np.ndarray:
    # On CPU and GPU a scalar would become a constant of the kernel, and each leaf would
    # need its own kernel. An array is an argument, so leaves of one shape share theirs.
    # It has two different elements, since XLA turns one, or two equal ones, into a
    # scalar.
    number = (position + 1) * _LEAF_STRIDE % 2**32
    return np.array([number, number ^ 1], np.uint32)


# Traced once per shape.
@functools.partial(jax.jit, static_argnames=("shape", "sharding"))
def _leaf_mask(
    words: _keys.Words, number: Any, limit: Limit, shape: Any, sharding: Sharding
) -> jax.Array:
    first, second = words

    def on_tpu() -> tuple[jax.Array, jax.Array | None, jax.Array]:
        # There a scalar costs nothing, and an array would cost a kernel per leaf.
        return first + number[0], *element_index(shape, sharding, flat=True)

    def elsewhere() -> tuple[jax.Array, jax.Array | None, jax.Array]:
        return (first + number)[0], *element_index(shape, sharding)

    start, row, index = jax.lax.platform_dependent(tpu=on_tpu, default=elsewhere)
    if row is not None:
        start, second = _keys.scramble(start + row), _keys.scramble(second ^ row)
    return is_kept(draw(index, start, second), limit)


def element_index(
    shape: tuple[Any, ...], sharding: Sharding = None, flat: bool = False
) -> tuple[jax.Array | None, jax.Array]:
    """Returns the global index of every element, as (row, index in the row), uint32.

    The index counts in row-major order over the whole (global, unsharded) shape. A row
    spans as many trailing dimensions as 32 bits can number. It is None if one row holds
    the whole leaf. A shape with symbolic dimensions is taken as one row.
    """
    dims = range(len(shape))
    rank = 0
    if all(isinstance(size, int) for size in shape):
        sizes = [math.prod(shape[dim:]) for dim in [*dims, len(shape)]]
        rank = next(dim for dim, size in enumerate(sizes) if size <= _INDEX_LIMIT)
        if math.prod(shape[:rank]) > _INDEX_LIMIT or (shape and rank == len(shape)):
            raise ValueError(
                "a leaf must have at most 2**32 rows of at most 2**32 elements, "
                f"got shape {shape}"
            )
    row = _count(shape, dims[:rank], sharding) if rank else None
    if flat and sharding is None and not rank:
        # XLA for TPU computes the i * d of Horner's rule in kernels of their own, and
        # merges the leaves that share them. It does not merge leaves that use one flat
        # iota. On other platforms every device would compute all of a flat iota if the
        # columns are sharded.
        return row, jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return row, _count(shape, dims[rank:], sharding)


def _count(shape: tuple[Any, ...], dims: range, sharding: Sharding) -> jax.Array:
    """Returns the index along `dims`, by Horner's rule: ((i d + j) e + k)."""
    index = None
    for dim in dims:
        size: Any = shape[dim]
        if isinstance(size, int) and size == 1:
            continue
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, dim, out_sharding=sharding)
        if index is not None:
            known = isinstance(size, int)  # it may be too large for int32
            factor = np.uint32(size) if known else jnp.asarray(size).astype(jnp.uint32)
            place = index * factor + place
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


def is_kept(drawn: jax.Array, limit: Limit) -> jax.Array:
    """Returns whether the high 24 bits of a draw are below `limit`."""
    if isinstance(limit, int) and limit > 0:  # the same in one operation less
        return drawn <= np.uint32((limit << 8) - 1)
    return drawn >> np.uint32(32 - _THRESHOLD_BITS) < jnp.asarray(limit, jnp.uint32)


def threshold(keep_prob: jax.typing.ArrayLike) -> Limit:
    """Returns the limit for a probability, `Fixed` if it is a Python number.

    It is computed in float32, whatever the dtype and configuration, so that the masks
    never depend on them. Outside of [0, 1] it saturates; NaN keeps nothing.
    """
    if isinstance(keep_prob, (int, float)):
        limit = Fixed(np.ceil(np.float32(keep_prob) * 2**_THRESHOLD_BITS))
        return ALL if limit == ALL else limit
    prob = jnp.asarray(keep_prob).astype(jnp.float32)
    prob = jnp.where(prob > 0, jnp.minimum(prob, 1), 0)
    return jnp.ceil(prob * 2**_THRESHOLD_BITS).astype(jnp.uint32)


def inverse_probability(limit: Limit, dtype: Any) -> jax.Array:
    """Returns 1 / (the probability that `is_kept` is True); never divides by 0."""
    count = jnp.maximum(jnp.asarray(limit, jnp.uint32), 1).astype(dtype)
    return 2**_THRESHOLD_BITS / count
