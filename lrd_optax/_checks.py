"""Checks of arguments: one error message per rule. Traced values are not read."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = float | np.floating | np.integer | jax.Array
Steps = int | np.integer | jax.Array
_LIMITS: dict[str, tuple[str, Callable[[Any, float], bool]]] = {
    "least": ("of at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("of at most", operator.le),
}


def number(name: str, value: Any, *, static: bool = False, **limits: float) -> Any:
    """Returns `value` as a Python float, or a JAX array as float32 or float64.

    The limits are `least`, `above` and `most`. With `static` a JAX array is refused.
    """
    rules = [f"{_LIMITS[key][0]} {limit:g}" for key, limit in limits.items()]
    rule = f"{name} must be a finite number {' and '.join(rules)}".rstrip()
    value = _scalar(name, rule, value, static)
    if isinstance(value, jax.Array):
        return value.astype(jnp.result_type(float))
    fits = all(_LIMITS[key][1](value, limit) for key, limit in limits.items())
    if not (fits and abs(value) < math.inf):  # NaN fails too
        raise ValueError(f"{rule}, got {value}")
    largest = float(jnp.finfo(jnp.result_type(float)).max)
    if abs(value) > largest:
        raise ValueError(f"{name} must be at most {largest:.3g} in size, got {value}")
    return float(value)


def whole_number(name: str, value: Any, *, least: int = 1, static: bool = False) -> Any:
    """Returns `value` as a Python int, or a JAX array as int32."""
    low = least if least >= 0 else "1 - 2**31"
    rule = f"{name} must be a whole number from {low} to 2**31 - 1"
    value = _scalar(name, rule, value, static)
    if isinstance(value, jax.Array):
        return value.astype(jnp.int32)
    if not least <= value < 2**31 or value != int(value):  # NaN fails too
        raise ValueError(f"{rule}, got {value}")
    return int(value)


def interval(low_name: str, low: Any, high_name: str, high: Any) -> tuple[Any, Any]:
    """Returns the two numbers. Raises if the first is above the second."""
    low, high = number(low_name, low), number(high_name, high)
    ordered(low_name, low, high_name, high)
    return low, high


def ordered(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raises if `low` is above `high`. JAX arrays are not compared."""
    if isinstance(low, float) and isinstance(high, float) and low > high:
        raise ValueError(
            f"{low_name} must be at most {high_name}, got {low} and {high}"
        )


def choice(name: str, value: Any, names: Iterable[str], other: str = "") -> None:
    """Raises unless `value` is one of `names`. `other` says what else it may be."""
    if not (isinstance(value, str) and value in names):
        allowed = ", ".join(map(repr, names))
        raise ValueError(f"{name} must be one of {allowed}{other}, got {shown(value)}")


def schedule(value: Any, name: str = "schedule", or_number: bool = False) -> Any:
    """Returns `value`: a function, or a number if `or_number` is True."""
    if or_number and isinstance(value, (int, float, np.number, np.ndarray, jax.Array)):
        return number(name, value)
    if not callable(value):
        rule = "a function of the update count" + ", or a number" * or_number
        raise TypeError(f"{name} must be {rule}, got {shown(value)}")
    return value


def function(name: str, value: Any) -> None:
    """Raises unless `value` can be called."""
    hint = ", as optax.adam without ()" * hasattr(value, "update")
    if not callable(value):
        raise TypeError(f"{name} must be a function{hint}, got {shown(value)}")


def call(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function of the user, and explains the error if it reads a tracer."""
    try:
        return function(*args)
    except jax.errors.UnexpectedTracerError:
        raise
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            f"{name} must be made of JAX operations, to be compiled: it asks for the "
            "value of an array that is traced, as float(...), int(...), if and NumPy do"
        ) from error


def state(value: Any) -> None:
    """Raises unless `value` looks like the state that init returns."""
    if not (hasattr(value, "count") and hasattr(value, "rng_key")):
        raise TypeError(
            "state must be the LearningRateDropoutState that init returns, "
            f"got {type(value).__name__}"
        )
    for field, rule, dtype, shape in (
        ("rng_key", "uint32 of shape (2,)", jnp.uint32, (2,)),
        ("count", "an integer scalar", jnp.integer, ()),
    ):
        got = getattr(value, field)
        array = got if hasattr(got, "dtype") else np.asarray(got)
        if array.shape != shape or not jnp.issubdtype(array.dtype, dtype):
            raise ValueError(f"state.{field} must be {rule}, got {shown(got)}")


def updates(leaves: list[Any]) -> None:
    """Raises unless every leaf is in device memory and holds numbers that can be 0."""
    for leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or isinstance(leaf, jax.ShapeDtypeStruct):
            got = f"type {type(leaf).__name__}"
            fits = isinstance(leaf, (int, float, complex)) and type(leaf) is not bool
        else:
            got = f"dtype {'float0' if dtype == jax.dtypes.float0 else dtype}"
            fits = jnp.issubdtype(dtype, jnp.number)
        if not fits:
            raise TypeError(f"updates must be arrays of numbers, got a leaf of {got}")
        if dtype == jnp.float8_e8m0fnu:
            raise TypeError(f"updates must have a zero, got a leaf of {got}")
        space = getattr(jax.typeof(leaf), "memory_space", None)
        if getattr(space, "name", None) == "Host":
            raise ValueError(
                "updates must be in device memory, got a leaf in host memory: "
                "move it with jax.device_put"
            )


def shortened(value: Any) -> str:
    """Returns the beginning of a long text, as for a tree, which may fill pages."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def shown(value: Any) -> str:
    """Returns `value` as an error message shows it."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"{value.dtype} of shape {value.shape}"
    text = repr(value)
    readable = len(text) < 60 and " at 0x" not in text and "Tracer<" not in text
    name = type(value).__name__
    return text if readable else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _scalar(name: str, rule: str, value: Any, static: bool = False) -> Any:
    """Returns a real number: a JAX array as it is, any other as a Python number."""
    if static and isinstance(value, jax.Array):
        raise TypeError(f"{name} must be a Python number, got a JAX array")
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        if value.shape != ():
            raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
        if not any(jnp.issubdtype(value.dtype, t) for t in (np.floating, np.integer)):
            raise TypeError(f"{rule}, got a scalar of dtype {value.dtype}")
        return value if isinstance(value, jax.Array) else value.item()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{rule}, got {shown(value)}")
    return value
