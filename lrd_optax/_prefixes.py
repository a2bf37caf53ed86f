"""Arguments that differ from leaf to leaf: prefixes of the tree of updates."""

from typing import Any, TypeAlias

import jax
import numpy as np

from lrd_optax import _checks

KeepProb: TypeAlias = Any
"""A number, an array, a schedule, or a tree prefix of these."""

Granularity: TypeAlias = Any
"""A name, a tuple of axes, a tree prefix of these, or a function that returns one."""

_NAMED: dict[str, tuple[int, ...]] = {"row": (-2,), "column": (-1,), "tensor": ()}


def numbers_per_leaf(name: str, prefix: Any, tree: Any) -> list[int]:
    """Returns, for each leaf of `tree`, the number of its leaf in a tree prefix.

    `prefix` is the structure of the tree prefix, a PyTreeDef.
    """
    try:
        subtrees = prefix.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be one value or a tree prefix of the updates, which are "
            f"{_checks.shortened(jax.tree.structure(tree))}, "
            f"got {_checks.shortened(prefix)}"
        ) from error
    return [n for n, part in enumerate(subtrees) for _ in jax.tree.leaves(part)]


def is_function(prefix: Any) -> bool:
    """Returns whether it is a function and no tree, as modules that can be called."""
    leaves = jax.tree.leaves(prefix)
    return bool(leaves) and all(map(callable, leaves))


def resolve(name: str, prefix: Any, tree: Any) -> Any:
    """Returns a tree prefix, or what it returns for `tree` if it is a function."""
    if is_function(prefix):
        return _checks.call(f"the function {name}", prefix, tree)
    return prefix


def check_granularity(prefix: Any) -> None:
    """Raises unless all values in a tree prefix are granularities."""
    for value in _flatten(prefix)[0] or [prefix]:
        numbers = value if _is_axes(value) else [None]
        if not all(isinstance(x, (int, np.integer)) for x in numbers):
            names = ("element", *_NAMED)
            _checks.choice("granularity", value, names, " or a tuple such as (-1,)")


def axes_per_leaf(granularity: Any, tree: Any) -> list[tuple[int, ...]]:
    """Returns the axes along which decisions differ, of those that each leaf has."""
    prefix = resolve("granularity", granularity, tree)
    if prefix is not granularity:  # else it was checked when it was passed
        check_granularity(prefix)
    values, structure = _flatten(prefix)
    numbers = numbers_per_leaf("granularity", structure, tree)
    leaves = jax.tree.leaves(tree)
    return [_axes(values[n], np.ndim(x)) for n, x in zip(numbers, leaves, strict=True)]


def _flatten(prefix: Any) -> tuple[list[str | tuple[int, ...]], Any]:
    return jax.tree.flatten(prefix, is_leaf=_is_axes)


def _is_axes(value: Any) -> bool:
    """Returns whether `value` is a tuple of axes, and not a tree of granularities."""
    numbers = (int, float, np.number)
    return type(value) is tuple and all(isinstance(axis, numbers) for axis in value)


def _axes(granularity: str | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    if granularity == "element":
        return tuple(range(dimensions))
    axes = _NAMED[granularity] if isinstance(granularity, str) else granularity
    return tuple(
        sorted({a % dimensions for a in axes if -dimensions <= a < dimensions})
    )
