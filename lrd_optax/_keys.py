"""What a caller may pass as a key, and the two threefry words made of it.

The words live in the optimizer state as plain ``uint32[2]`` and not as a typed
key: serialisers, casts and norms over the state fail on typed keys.
"""

from collections.abc import Hashable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

KeyLike: TypeAlias = int | np.integer | jax.Array | np.ndarray
"""An int seed, a typed key, or a legacy ``uint32`` key."""

_RULE = "must be an int, a jax.random key, or a legacy uint32 key"


def check_key(key: KeyLike, name: str = "key") -> None:
    """Raises unless `key` is one of the kinds that `key_words` takes.

    Looks at Python types, dtypes and shapes only: tracers pass, and no array is
    made (one would start the backend too early, or leak out of a trace).
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if not -(2**63) <= int(key) < 2**64:
            raise ValueError(f"{name} as an int must fit in 64 bits, got {key}")
        return
    if not isinstance(key, (jax.Array, np.ndarray)):
        if hasattr(key, "rng_key"):  # a state, in place of what it holds
            raise TypeError(f"{name} {_RULE}, got a state: pass its field rng_key")
        shown = repr(key) if len(repr(key)) < 60 else f"a {type(key).__name__}"
        raise TypeError(f"{name} {_RULE}, got {shown}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(f"{name} must be one key, got keys of shape {key.shape}")
    elif key.shape == ():
        if not jnp.issubdtype(key.dtype, jnp.integer):
            raise TypeError(f"{name} {_RULE}, got a scalar of dtype {key.dtype}")
    elif key.dtype != jnp.uint32:
        raise TypeError(f"{name} {_RULE}, got an array of dtype {key.dtype}")
    elif key.shape not in ((2,), (4,)):
        raise ValueError(f"{name} {_RULE} of shape (2,), got shape {key.shape}")


def key_words(key: KeyLike) -> jax.Array:
    """Returns `key` as two threefry words, ``uint32[2]``, in a buffer of its own.

    An int seed gives the words of ``jax.random.key(seed, impl="threefry2x32")``
    as they are under x64, whatever the configuration says: high bits are never
    cut off, and a negative seed is its 64-bit two's complement.
    """
    if isinstance(key, np.ndarray) and key.shape == ():
        key = int(key)
    if isinstance(key, (int, np.integer)):
        halves = [int(key) >> 32 & 0xFFFFFFFF, int(key) & 0xFFFFFFFF]
        return jnp.array(np.array(halves, np.uint32))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key).reshape(-1)
    elif key.shape == ():
        return _seed_words(jnp.asarray(key))
    data = jnp.array(key, jnp.uint32, copy=True)  # the caller may donate its own
    # Other implementations have more than two words: each of the rest is folded in.
    words, rest = data[:2], data[2:]
    for word in rest:
        words = jax.random.key_data(jax.random.fold_in(_typed(words), word))
    return words


@jax.jit  # for eager use: one dispatch, and the words may be sharded
def split_words(words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the words that replace `words`, and the words to draw from now."""
    spec = jax.typeof(words).sharding.spec
    # A rule that shards every array of a state may have cut the two words apart.
    sharded = any(axis is not None for axis in spec)
    if sharded:
        words = jax.sharding.reshard(words, PartitionSpec())
    # fold_in and not split: what split returns depends on jax_threefry_partitionable.
    # Not one fold_in under vmap: that fails in a shard_map under vmap.
    following, now = (
        jax.random.key_data(jax.random.fold_in(_typed(words), i)) for i in (0, 1)
    )
    return jax.sharding.reshard(following, spec) if sharded else following, now


def shard_words(words: jax.Array, axes: frozenset[Hashable]) -> jax.Array:
    """Returns words of its own for every shard along the manual mesh axes `axes`."""
    for axis in sorted(axes, key=str):
        shard = jax.random.fold_in(_typed(words), jax.lax.axis_index(axis))
        words = jax.random.key_data(shard)
    return words


def _typed(words: jax.Array) -> jax.Array:
    key: jax.Array = jax.random.wrap_key_data(words, impl="threefry2x32")
    return key


def _seed_words(seed: jax.Array) -> jax.Array:
    """The words of a (traced) integer scalar, equal to those of the Python int."""
    low = seed.astype(jnp.uint32)
    if jnp.iinfo(seed.dtype).bits == 64:
        high = (seed >> 32).astype(jnp.uint32)
    elif jnp.issubdtype(seed.dtype, jnp.signedinteger):
        high = jnp.where(seed < 0, np.uint32(0xFFFFFFFF), np.uint32(0))
    else:
        high = jnp.zeros_like(low)
    return jnp.stack([high, low])
