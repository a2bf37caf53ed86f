"""Keys: what a caller may pass, the two words made from it, and the words of each step.

The words live in the optimizer state as plain ``uint32[2]`` and not as a typed
key, since serializers, casts and norms over the state fail on typed keys.
"""

import functools
from collections.abc import Hashable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lrd_optax import _checks

KeyLike: TypeAlias = int | np.integer | jax.Array | np.ndarray
"""An int seed, a typed key, or a legacy ``uint32`` key."""

Words: TypeAlias = tuple[jax.Array, jax.Array]
"""Two uint32 scalars."""

_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint32)  # Salmon et al, SC 2011
# Digits of pi.
_ROUND_CONSTANTS = np.array([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], np.uint32)

_RULE = "key must be an int, a jax.random key, or a legacy uint32 key"


def check_key(key: KeyLike) -> None:
    """Raises unless `key` is of a type that `key_words` takes.

    Only Python types, dtypes and shapes are looked at. So tracers pass, and no array
    is made: an array would start the backend too early, or leak out of a trace.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if not -(2**63) <= int(key) < 2**64:
            raise ValueError(f"key as an int must fit in 64 bits, got {key}")
        return
    if not isinstance(key, (jax.Array, np.ndarray)):
        hint = ""
        if hasattr(type(key), "rng_key"):
            hint = ": pass its field rng_key"
        # As nnx.Rngs and its streams. (The variables of Flax NNX can be called too.)
        elif callable(key) and not hasattr(type(key), "__jax_array__"):
            hint = ": call it, as rngs.params(), and pass what it returns"
        raise TypeError(f"{_RULE}, got {_checks.shown(key)}{hint}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(f"key must be one key, got keys of shape {key.shape}")
    elif not jnp.issubdtype(key.dtype, jnp.uint32 if key.shape else jnp.integer):
        got = "an array" if key.shape else "a scalar"
        raise TypeError(f"{_RULE}, got {got} of dtype {key.dtype}")
    elif key.shape not in ((), (2,), (4,)):
        raise ValueError(f"{_RULE} of shape (2,), got shape {key.shape}")


def key_words(key: Any) -> jax.Array:
    """Returns a `KeyLike` as two words, ``uint32[2]``, in a buffer of its own.

    An int seed gives the words that ``jax.random.key(seed, impl="threefry2x32")``
    has under x64, whatever the configuration: high bits are never cut off, and a
    negative seed is taken as its 64-bit two's complement.
    """
    if not isinstance(key, jax.Array) and np.ndim(key) == 0:
        halves = [int(key) >> 32 & 0xFFFFFFFF, int(key) & 0xFFFFFFFF]
        return jnp.array(np.array(halves, np.uint32))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key).reshape(-1)
    elif key.shape == ():
        if jnp.iinfo(key.dtype).bits < 32:
            key = key.astype(jnp.int32)
        # Shifted in two steps, since a 32-bit number cannot be shifted by 32.
        return jnp.stack([key >> 31 >> 1, key]).astype(jnp.uint32)
    data = jnp.array(key, jnp.uint32, copy=True)  # the caller may donate the original
    if data.shape == (2,):  # below, the empty rest of a sharded array would fail
        return data
    # Keys of other implementations have more than two words: the rest is folded in.
    words, rest = data[:2], data[2:]
    for word in rest:
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        words = jax.random.key_data(jax.random.fold_in(key, word))
    return words


def next_key(key: jax.Array) -> jax.Array:
    """Returns the words that replace those in the state when its masks are used up.

    They grow by two fixed odd constants, and `mask_words` is a one-to-one mix of them.
    So keys that users derive from one another, by ``fold_in``, ``split`` or counting,
    do not repeat each other's masks.
    """
    return key + _WEYL


def mask_words(key: jax.Array, back: jax.Array | None = None) -> Words:
    """Returns the words to draw masks from. `back` goes back so many keys, uint32."""
    # A user who shards every array of the state may have split the two words.
    sharding = jax.typeof(key).sharding
    if any(axis is not None for axis in sharding.spec):
        replicated = NamedSharding(sharding.mesh, PartitionSpec())
        key = jax.sharding.reshard(key, replicated)
    if back is not None:
        key = key - back * _WEYL
    return _mix((key[0], key[1]))


def shard_words(words: Words, axes: frozenset[Hashable]) -> Words:
    """Returns different words in every shard along the manual mesh axes `axes`."""
    first, second = words
    for axis in sorted(axes, key=str):
        shard = jax.lax.axis_index(axis).astype(jnp.uint32)
        first, second = _mix((first + shard, second ^ shard))
    return first, second


def scramble(x: jax.Array) -> jax.Array:
    """Hashes uint32 one to one, by the function "lowbias32": no structure is left."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def _mix(words: Words) -> Words:
    """Mixes two words one to one, by a Feistel network of four rounds.

    Threefry costs more: on a GPU two calls of it take longer than all of this, and on a
    TPU they change what XLA prefetches in the whole program. The words are two scalars,
    since XLA for GPU merges leaves that share an array into one large kernel.
    """

    def one_round(words: Words, constant: Any) -> tuple[Words, None]:
        left, right = words
        return (right, left ^ scramble(right + constant)), None

    def mix(unroll: int, words: Words) -> Words:
        return jax.lax.scan(one_round, words, _ROUND_CONSTANTS, unroll=unroll)[0]

    # XLA for CPU repeats straight-line code in the kernel of every leaf, but no loop.
    return jax.lax.platform_dependent(
        words, cpu=functools.partial(mix, 1), default=functools.partial(mix, 4)
    )
