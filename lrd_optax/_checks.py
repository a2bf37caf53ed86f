"""What a caller may pass; one sentence for what not. Values of tracers are not read."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NUMBERS = (int, float, np.integer, np.floating)


def check_keep_prob(value: Any, name: str = "keep_prob") -> None:
    """Raises unless `value` can be a keep probability."""
    rule = f"{name} must be a number in (0, 1]"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        if value.shape != ():
            raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
        if not any(jnp.issubdtype(value.dtype, t) for t in (np.floating, np.integer)):
            raise TypeError(f"{rule}, got a scalar of dtype {value.dtype}")
        if isinstance(value, jax.Array):
            return
    elif not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{rule}, got {value!r}")
    if not 0 < value <= 1:  # written so that NaN fails too
        raise ValueError(f"{rule}, got {value}")


def check_state(state: Any) -> None:
    """Raises unless `state` is, or looks like, what init returned."""
    if not (hasattr(state, "count") and hasattr(state, "rng_key")):
        raise TypeError(
            "state must be the LearningRateDropoutState that init returns, "
            f"got {type(state).__name__}"
        )
    if not _is(state.rng_key, jnp.uint32, (2,)):
        got = _describe(state.rng_key)
        raise ValueError(f"state.rng_key must be uint32 of shape (2,), got {got}")
    if not _is(state.count, jnp.integer, ()):
        got = _describe(state.count)
        raise ValueError(f"state.count must be an integer scalar, got {got}")


def check_updates(leaves: list[Any]) -> None:
    for leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or isinstance(leaf, jax.ShapeDtypeStruct):
            kind = f"type {type(leaf).__name__}"
            fine = isinstance(leaf, (int, float, complex)) and not isinstance(
                leaf, bool
            )
        else:
            kind = f"dtype {'float0' if dtype == jax.dtypes.float0 else dtype}"
            fine = jnp.issubdtype(dtype, jnp.number)
        if not fine:
            raise TypeError(f"updates must be arrays of numbers, got a leaf of {kind}")
        space = getattr(jax.typeof(leaf), "memory_space", None)
        if getattr(space, "name", None) == "Host":
            raise ValueError(
                "updates must be in device memory, got a leaf in host memory: "
                "move it with jax.device_put"
            )


def check_shapes(leaves: list[Any]) -> None:
    for leaf in leaves:
        if not hasattr(leaf, "shape") and not isinstance(leaf, (int, float, complex)):
            kind = type(leaf).__name__
            raise TypeError(
                f"tree must have arrays as leaves, got a leaf of type {kind}"
            )


def _is(value: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
    if not hasattr(value, "dtype"):
        return shape == () and isinstance(value, int) and not isinstance(value, bool)
    return value.shape == shape and jnp.issubdtype(value.dtype, dtype)


def _describe(value: Any) -> str:
    if not hasattr(value, "dtype"):
        return repr(value)
    return f"{value.dtype} of shape {value.shape}"
