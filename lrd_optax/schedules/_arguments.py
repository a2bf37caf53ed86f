"""What a caller may pass; one sentence for what not. Values of tracers are not read."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = float | np.floating | np.integer | jax.Array
Steps = int | np.integer | jax.Array


def number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> float | jax.Array:
    """Returns `value` as a Python float, or as it is if it is a scalar JAX array."""
    rules = [f"of at least {least:g}"] if least > -math.inf else []
    rules += [f"above {above:g}"] if above > -math.inf else []
    rules += [f"of at most {most:g}"] if most < math.inf else []
    rule = " ".join([f"{name} must be a finite number", " and ".join(rules)]).rstrip()
    if isinstance(value, jax.Array):
        return _scalar(name, rule, value)
    value = _plain(rule, value)
    largest = float(jnp.finfo(jnp.result_type(float)).max)
    # Written so that NaN fails too.
    if largest < abs(value) < math.inf:
        rule = f"{name} must be at most {largest:.3g} in size"
    if not (abs(value) <= largest and least <= value <= most and value > above):
        raise ValueError(f"{rule}, got {value}")
    return float(value)


def whole_number(name: str, value: Any, *, least: int | None = 1) -> int | jax.Array:
    """Returns `value` as a Python int, or as it is if it is a scalar JAX array."""
    rule = f"{name} must be a whole number"
    rule += "" if least is None else f" of at least {least}"
    if isinstance(value, jax.Array):
        return _scalar(name, rule, value)
    value = _plain(rule, value)
    if 2**63 <= abs(value) < math.inf:
        rule = f"{name} must be below 2**63"
    if not abs(value) < 2**63 or value != int(value):
        raise ValueError(f"{rule}, got {value}")
    if least is not None and value < least:
        raise ValueError(f"{rule}, got {value}")
    return int(value)


def ordered(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raises if both are known and `low` is above `high`."""
    if isinstance(low, float) and isinstance(high, float) and low > high:
        raise ValueError(
            f"{low_name} must be at most {high_name}, got {low} and {high}"
        )


def static(name: str, value: Any) -> Any:
    """Returns `value`, which must not be a JAX array."""
    if isinstance(value, jax.Array):
        raise TypeError(f"{name} must be a Python number, got a JAX array")
    return value


def static_number(name: str, value: Any, **limits: float) -> float:
    """Returns `value`, which must be a number and no JAX array, as a Python float."""
    return float(number(name, static(name, value), **limits))


def schedule(value: Any, name: str = "schedule") -> Any:
    """Returns `value`, which must be a function."""
    if not callable(value):
        kind = type(value).__name__
        got = repr(value) if len(repr(value)) < 60 else f"a {kind}"
        raise TypeError(f"{name} must be a function of the update count, got {got}")
    return value


def schedule_or_number(value: Any, name: str = "schedule") -> Any:
    """Returns `value`: a function as it is, or a number that was checked."""
    if callable(value) or isinstance(value, (int, float, np.generic, jax.Array)):
        return value if callable(value) else number(name, value)
    kind = type(value).__name__
    raise TypeError(
        f"{name} must be a function of the update count, or a number, got a {kind}"
    )


def _plain(rule: str, value: Any) -> int | float:
    if isinstance(value, (np.ndarray, np.generic)) and value.shape == ():
        value = value.item()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{rule}, got {value!r}")
    return value


def _scalar(name: str, rule: str, value: jax.Array) -> jax.Array:
    if value.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
    if not any(jnp.issubdtype(value.dtype, t) for t in (np.floating, np.integer)):
        raise TypeError(f"{rule}, got a scalar of dtype {value.dtype}")
    return value
