"""The networks of the study, in Flax NNX, small enough to train thousands of them.

Each takes `drop`, a pair of a dropout rate and a key, or None. The rate may be traced,
so that all rates are one program; the rate of `nnx.Dropout` must be a number.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Drop = tuple[jax.Array, jax.Array] | None
List: Any = getattr(nnx, "List", list)  # Flax below 0.12 takes plain lists


def dropout(x: jax.Array, drop: Drop, layer: int) -> jax.Array:
    if drop is None:
        return x
    rate, key = drop
    kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


class MLP(nnx.Module):
    """Hidden layers of the given widths, then a linear head."""

    def __init__(
        self, inputs: int, widths: tuple[int, ...], rngs: nnx.Rngs, tanh=False
    ):
        sizes = (inputs, *widths)
        self.layers = List(
            [nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(sizes)]
        )
        self.head = nnx.Linear(sizes[-1], 10, rngs=rngs)
        self.act = nnx.tanh if tanh else nnx.relu

    def __call__(self, x: jax.Array, drop: Drop = None) -> jax.Array:
        for number, layer in enumerate(self.layers):
            x = dropout(self.act(layer(x)), drop, number)
        return self.head(x)


class ResidualMLP(nnx.Module):
    """A linear layer, then blocks x + second(relu(first(x))), then a linear head."""

    def __init__(self, inputs: int, width: int, blocks: int, rngs: nnx.Rngs):
        self.stem = nnx.Linear(inputs, width, rngs=rngs)
        self.first = List([nnx.Linear(width, width, rngs=rngs) for _ in range(blocks)])
        self.second = List([nnx.Linear(width, width, rngs=rngs) for _ in range(blocks)])
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x: jax.Array, drop: Drop = None) -> jax.Array:
        x = self.stem(x)
        for number, (first, second) in enumerate(
            zip(self.first, self.second, strict=True)
        ):
            x = x + second(dropout(nnx.relu(first(x)), drop, number))
        return self.head(nnx.relu(x))


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Turns a convolution into a product of matrices.

    Under `vmap` over weights a convolution becomes a grouped one, which XLA runs more
    than ten times slower on a CPU.
    """
    batch, height, width, channels = x.shape
    if size == stride:  # patches that do not overlap need no copies
        x = x.reshape(batch, height // size, size, width // size, size, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height // size, width // size, -1)
    height, width = height - size + 1, width - size + 1
    shifted = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


class CNN(nnx.Module):
    """Two convolutions, 3x3 and 2x2 with stride 2, and a linear head.

    `shape` is that of an image: (height, width, channels), height and width even.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int, rngs: nnx.Rngs):
        height, width, colors = shape
        features = (height // 2 - 1) * (width // 2 - 1) * channels
        self.shape = shape
        self.first = nnx.Linear(9 * colors, channels, rngs=rngs)
        self.second = nnx.Linear(4 * channels, channels, rngs=rngs)
        self.head = nnx.Linear(features, 10, rngs=rngs)

    def __call__(self, x: jax.Array, drop: Drop = None) -> jax.Array:
        x = x.reshape(len(x), *self.shape)
        x = dropout(nnx.relu(self.first(patches(x, 3, 1))), drop, 0)
        x = dropout(nnx.relu(self.second(patches(x, 2, 2))), drop, 1)
        return self.head(x.reshape(len(x), -1))


class Mixture(nnx.Module):
    """A linear layer, then a soft mixture of experts (MLPs of one hidden layer).

    All experts see every image; the router weighs their outputs by a softmax.
    """

    def __init__(
        self, inputs: int, width: int, hidden: int, experts: int, rngs: nnx.Rngs
    ):
        self.stem = nnx.Linear(inputs, width, rngs=rngs)
        self.router = nnx.Linear(width, experts, use_bias=False, rngs=rngs)
        self.first = List(
            [nnx.Linear(width, hidden, rngs=rngs) for _ in range(experts)]
        )
        self.second = List(
            [nnx.Linear(hidden, width, rngs=rngs) for _ in range(experts)]
        )
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x: jax.Array, drop: Drop = None) -> jax.Array:
        x = nnx.relu(self.stem(x))
        weights = nnx.softmax(self.router(x))
        experts = zip(self.first, self.second, strict=True)
        mixed = sum(
            weights[:, number, None] * second(dropout(nnx.relu(first(x)), drop, number))
            for number, (first, second) in enumerate(experts)
        )
        return self.head(nnx.relu(x + mixed))


class Transformer(nnx.Module):
    """A decoder of pre-norm blocks on characters; no bias but in the norms."""

    def __init__(
        self,
        letters: int,
        context: int,
        width: int,
        hidden: int,
        blocks: int,
        rngs: nnx.Rngs,
    ):
        self.embed = nnx.Embed(letters, width, rngs=rngs)
        self.places = nnx.Embed(context, width, rngs=rngs)
        linear = nnx.Linear
        self.attention = List(
            [
                nnx.MultiHeadAttention(
                    num_heads=width // 16,
                    in_features=width,
                    use_bias=False,
                    decode=False,
                    rngs=rngs,
                )
                for _ in range(blocks)
            ]
        )
        self.up = List(
            [linear(width, hidden, use_bias=False, rngs=rngs) for _ in range(blocks)]
        )
        self.down = List(
            [linear(hidden, width, use_bias=False, rngs=rngs) for _ in range(blocks)]
        )
        self.norms = List(
            [nnx.LayerNorm(width, rngs=rngs) for _ in range(2 * blocks + 1)]
        )
        self.head = linear(width, letters, use_bias=False, rngs=rngs)

    def __call__(self, letters: jax.Array, drop: Drop = None) -> jax.Array:
        length = letters.shape[-1]
        x = self.embed(letters) + self.places(jnp.arange(length))[None]
        mask = nnx.make_causal_mask(letters)
        for number in range(len(self.up)):
            normed = self.norms[2 * number](x)
            attended = self.attention[number](normed, mask=mask)
            x = x + dropout(attended, drop, 2 * number)
            hidden = nnx.gelu(self.up[number](self.norms[2 * number + 1](x)))
            x = x + dropout(self.down[number](hidden), drop, 2 * number + 1)
        return self.head(self.norms[-1](x))
