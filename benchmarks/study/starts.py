"""Where a run begins: grown, symmetric and usual starts, as functions of a key."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Params = Any
Name = str  # as in "['first'][0]['kernel']"


def name_of(path: tuple[Any, ...]) -> Name:
    return jax.tree_util.keystr(path)


def leaves_by_name(params: Params) -> dict[Name, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {name_of(path): leaf for path, leaf in leaves}


def fill(template: Params, make: Callable[[Name, tuple[int, ...]], jax.Array]):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: make(name_of(path), leaf.shape), template
    )


def copied_units(narrow: Params, template: Params, shares=None) -> Params:
    """Copies units, and divides what leaves them by the number of copies.

    `shares`, a key, divides it at random instead.
    """
    leaves = leaves_by_name(narrow)

    def make(name, shape):
        leaf = leaves[name]
        copies = [new // old for new, old in zip(shape, leaf.shape, strict=True)]
        for axis, number in enumerate(copies):
            leaf = jnp.repeat(leaf, number, axis)
        if leaf.ndim == 1 or copies[0] == 1:
            return leaf
        if shares is None:
            return leaf / copies[0]
        drawn = jax.random.dirichlet(
            shares, jnp.ones(copies[0]), (shape[0] // copies[0],)
        )
        return leaf * drawn.reshape(-1, 1)

    return fill(template, make)


def copied_layers(shallow: Params, template: Params) -> Params:
    """Replaces each block by two copies in a row, and halves what they add."""
    leaves = leaves_by_name(shallow)

    def make(name, shape):
        if "first" not in name and "second" not in name:
            return leaves[name]
        half = re.sub(r"\[(\d+)\]", lambda m: f"[{int(m[1]) // 2}]", name)
        return leaves[half] / (2 if "second" in name else 1)

    return fill(template, make)


def copied_experts(single: Params, template: Params, router=None) -> Params:
    """Copies the one expert. The router is zero, or drawn from the key `router`."""
    leaves = leaves_by_name(single)

    def make(name, shape):
        if "router" in name:
            if router is None:
                return jnp.zeros(shape)
            return jax.random.normal(router, shape) / jnp.sqrt(shape[0])
        return leaves[re.sub(r"\[\d+\]", "[0]", name)]

    return fill(template, make)


def equal_weights(params: Params) -> Params:
    """Sets each weight to 1 / fan-in."""
    return jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 1 / leaf.shape[0]) if leaf.ndim > 1 else leaf,
        params,
    )


def small_weights(params: Params) -> Params:
    """Multiplies each weight by 0.3, which brings the network near the saddle at 0."""
    return jax.tree.map(lambda leaf: 0.3 * leaf if leaf.ndim > 1 else leaf, params)


def add_noise(params: Params, size: jax.Array, key: jax.Array, where: str) -> Params:
    """Adds noise, relative to each kernel's root mean square, to kernels by name."""

    def add(path, leaf):
        name = name_of(path)
        if leaf.ndim < 2 or not re.search(where, name):
            return leaf
        number = sum(map(ord, name))
        drawn = jax.random.normal(jax.random.fold_in(key, number), leaf.shape)
        return leaf + size * jnp.sqrt(jnp.mean(leaf**2)) * drawn

    return jax.tree_util.tree_map_with_path(add, params)
