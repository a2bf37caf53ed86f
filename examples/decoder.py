"""A decoder-only transformer in Flax NNX, split over a mesh with explicit shardings.

The mesh has two axes. The batch is split over "data". The heads of the attention and
the hidden units of the MLP are split over "tensor", as in Megatron-LM. Each device has
its heads and units, and the sum over "tensor" is the output of the attention or MLP.

Equal layers are one module whose leaves are stacked: `layers/query` has the shape
[layers, features, features]. So `scan` compiles one layer, whatever their number.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import options
from flax import nnx
from jax.sharding import PartitionSpec as P

BYTES = 256  # the tokens
WHOLE = P("data", None, None)  # [batch, position, features]
SPLIT = P("data", None, "tensor")  # the last axis is split
SPLIT_HEADS = P("data", None, None, "tensor", None)
Params = dict[str, Any]


class Shape(NamedTuple):
    layers: int
    features: int
    heads: int
    hidden: int  # units of the MLP


SHAPES = {size: Shape(*numbers) for size, numbers in options.SIZES.items()}


def matrix(
    rngs: nnx.Rngs, shape: tuple[int, int], spec: P, scale: float = 1.0
) -> nnx.Param:
    """Returns a random matrix [in, out]. No device ever holds more than its part."""
    # The sharding is an argument, since a whole array may not fit on one device.
    values = jax.random.normal(rngs.params(), shape, out_sharding=spec)
    return nnx.Param(values * (scale * shape[0] ** -0.5))


def product(x: jax.Array, weights: nnx.Param) -> jax.Array:
    """Returns the product with a matrix [in, out], as a sum over "tensor" if split."""
    array = weights[...].astype(x.dtype)
    return jnp.einsum("bpi,io->bpo", x, array, out_sharding=WHOLE)


def products(x: jax.Array, *matrices: nnx.Param) -> jax.Array:
    """Returns the products with several matrices, [batch, position, matrix, unit].

    In the backward pass of one product, one sum over "tensor" serves all of them.
    """
    beside = jnp.stack([weights[...].astype(x.dtype) for weights in matrices], axis=1)
    spec = P("data", None, None, "tensor")
    return jnp.einsum("bpi,imo->bpmo", x, beside, out_sharding=spec)


def normalize(x: jax.Array, scale: nnx.Param) -> jax.Array:
    """RMSNorm: divides each vector by its root mean square. In float32."""
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + 1e-6) * scale[...][None, None]).astype(
        x.dtype
    )


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions: turns pairs of features by angles that grow with position."""
    length, half = x.shape[1], x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.outer(jnp.arange(length, dtype=jnp.float32), rates)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.astype(x.dtype)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of each position to itself and to those before it."""
    wide = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("bqhf,bkhf->bhqk", query, key, **wide) * key.shape[-1] ** -0.5
    length = query.shape[1]
    is_seen = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(is_seen[None, None], scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhf->bqhf", weights.astype(value.dtype), value)


class Layer(nnx.Module):
    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        features, hidden = shape.features, shape.hidden
        inward, outward = P(None, "tensor"), P("tensor", None)
        # The sum of the outputs of all layers begins with a variance of about 1.
        scale = (2 * shape.layers) ** -0.5
        self.heads = shape.heads
        self.attention_scale = nnx.Param(jnp.ones(features))
        self.query = matrix(rngs, (features, features), inward)
        self.key = matrix(rngs, (features, features), inward)
        self.value = matrix(rngs, (features, features), inward)
        self.out = matrix(rngs, (features, features), outward, scale)
        self.mlp_scale = nnx.Param(jnp.ones(features))
        self.gate = matrix(rngs, (features, hidden), inward)
        self.up = matrix(rngs, (features, hidden), inward)
        self.down = matrix(rngs, (hidden, features), outward, scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(normalize(x, self.attention_scale))
        return x + self.mlp(normalize(x, self.mlp_scale))

    def attention(self, x: jax.Array) -> jax.Array:
        y = products(x, self.query, self.key, self.value)
        shape = (*y.shape[:3], self.heads, y.shape[-1] // self.heads)
        y = jnp.reshape(y, shape, out_sharding=SPLIT_HEADS)
        query, key, value = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        seen = attend(rotate(query), rotate(key), value)
        seen = jnp.reshape(seen, x.shape, out_sharding=SPLIT)
        return product(seen, self.out)

    def mlp(self, x: jax.Array) -> jax.Array:
        """SwiGLU: the product of two layers of units, one of them through SiLU."""
        y = products(x, self.gate, self.up)
        units = jax.nn.silu(y[:, :, 0]) * y[:, :, 1]
        return product(units, self.down)


class Decoder(nnx.Module):
    """Tokens [batch, position] to logits of the next token [batch, position, BYTES]."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=shape.layers)
        @nnx.vmap(in_axes=(nnx.StateAxes({...: 0}),), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(shape, rngs)

        features = shape.features
        # A byte has `features` numbers, whose squares sum to about 1.
        scale = (BYTES / features) ** 0.5
        self.embedding = matrix(rngs, (BYTES, features), P(None, None), scale)
        self.layers = stack(rngs)
        self.final_scale = nnx.Param(jnp.ones(features))
        self.head = matrix(rngs, (features, BYTES), P(None, None))

    def __call__(
        self, tokens: jax.Array, dtype: Any = jnp.float32, remat: bool = False
    ) -> jax.Array:
        x = self.embedding[...].at[tokens].get(out_sharding=WHOLE).astype(dtype)
        graph, stacked = nnx.split(self.layers)

        def run(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graph, params)(x), None

        # With remat, a layer's values are computed again in the backward pass.
        x, _ = jax.lax.scan(jax.checkpoint(run) if remat else run, x, stacked)
        x = normalize(x, self.final_scale)
        return product(x, self.head).astype(jnp.float32)


def initial_params(shape: Shape, seed: int) -> Params:
    """Returns the parameters as nested dicts. Call it under `jit` and `set_mesh`."""
    return nnx.to_pure_dict(nnx.state(Decoder(shape, nnx.Rngs(seed)), nnx.Param))


def graph_of(shape: Shape) -> nnx.GraphDef:
    """Returns what `nnx.merge` makes a model of, together with the parameters."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(shape, nnx.Rngs(0))))[0]
