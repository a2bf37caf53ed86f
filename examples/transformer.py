r"""A small language model with Learning Rate Dropout (LRD): a transformer on any text.

    python examples/transformer.py            # about 10 minutes on 2 CPU cores
    python examples/transformer.py --quick    # a short look
    python examples/transformer.py --text book.txt --size 3M --method lrd --mask tensor
    python examples/curves.py results/text-lrd results/text-dense    # in one picture

It learns to predict the next byte. By default it reads Python's own library. The last
5 % of the text are held out. A report has the bits per byte on 8 batches of these (8
bits for a guess; less is better) and a sample of what the model writes. Ctrl-C stops
the run, and the same command goes on.

The optimizer is AdamW. `--method` says what is behind it:

- "dense": nothing;
- "lrd": LRD. `--mask` says what one decision is for: an element, a row, or a tensor.
  Layers are stacked in one array, and each of them decides for itself;
- "skipupdate": one decision for each matrix of attention and MLP, divided by keep_prob;
- "magma": the same masks, and steps scaled by how gradient and momentum agree.

`--mesh 2,4` splits the batch over 2 groups of 4 devices, and each matrix of a layer
over the 4. Masks are the same on any mesh, and nothing is sent for them.
"""

import argparse
import math
import os
import sys
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.transformer()

import curves
import decoder
import jax
import jax.numpy as jnp
import numpy as np
import optax
import runs
import text
from decoder import Params, Shape
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lrd_optax

VALIDATION_BATCHES, SAMPLE = 8, 200
BATCH = P("data", None)
DECISIVE = ["size", "context", "batch", "steps", "learning_rate", "clip", "method"]
DECISIVE += ["mask", "keep_prob", "unbiased", "bfloat16", "seed"]  # for the result
State = dict[str, Any]


def make_mesh(data: int, tensor: int) -> Mesh:
    types = (AxisType.Explicit, AxisType.Explicit)
    return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=types)


def learning_rate(peak: float, steps: int) -> optax.Schedule:
    """Rises for 5 % of the steps, stays, and falls to 0 in the last 20 %."""
    rise, fall = steps // 20, max(1, steps // 5)
    stay = steps - rise - fall
    return lrd_optax.schedules.warmup_stable_decay(peak, rise, stay, fall)


def is_matrix(params: Params) -> Params:
    """True for the matrices of attention and MLP, also where they are stacked."""

    def choose(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return "layers" in name and "scale" not in name

    return jax.tree_util.tree_map_with_path(choose, params)


def granularity(mask: str) -> Any:
    """Returns what one decision is for; axis 0 of a stacked leaf counts the layers."""
    stacked: Any = {"element": "element", "row": (0, -2), "tensor": (0,)}[mask]
    alone = dict.fromkeys(("embedding", "final_scale", "head"), mask)
    return {"layers": stacked, **alone}


def make_optimizer(
    rate: optax.ScalarOrSchedule,
    method: str = "dense",
    mask: str = "element",
    keep_prob: float = 0.5,
    unbiased: bool = False,
    clip: float = 1.0,
    key: int = 0,
) -> optax.GradientTransformation:
    """Returns AdamW with one of the methods behind it. The decay is masked too."""
    adamw = optax.adamw(rate, b2=0.95, weight_decay=0.1, mask=is_matrix)
    masks: dict[str, Any] = {"keep_prob": keep_prob, "key": key}
    if method == "lrd":
        masks |= {"granularity": granularity(mask), "unbiased": unbiased}
        adamw = optax.chain(adamw, lrd_optax.learning_rate_dropout(**masks))
    elif method == "skipupdate":
        masks |= {"granularity": (0,), "unbiased": True}
        skip = lrd_optax.learning_rate_dropout(**masks)
        adamw = optax.chain(adamw, optax.masked(skip, is_matrix))
    elif method == "magma":
        masks |= {"granularity": (0,), "mask": is_matrix}
        adamw = lrd_optax.experimental.magma(adamw, **masks)
    return optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw


def initial_state(
    shape: Shape, optimizer: optax.GradientTransformation, seed: int
) -> State:
    """Returns the state before the first step. Call it under `jit` and `set_mesh`."""
    params = decoder.initial_params(shape, seed)
    opt_state = optimizer.init(params)
    # The loss is added up from one report to the next.
    sums = {"loss": jnp.zeros(()), "steps": jnp.zeros(())}
    return {"params": params, "opt_state": opt_state, "sums": sums}


Model = Callable[[Params, jax.Array], jax.Array]  # parameters and tokens to logits


def make_model(shape: Shape, dtype: Any = jnp.float32, remat: bool = False) -> Model:
    graph = decoder.graph_of(shape)
    return lambda params, tokens: nnx.merge(graph, params)(tokens, dtype, remat)


def loss_of(model: Model, params: Params, tokens: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of each next byte, in nats."""
    logits = model(params, tokens[:, :-1])
    labels = tokens[:, 1:]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def make_step(
    model: Model, optimizer: optax.GradientTransformation
) -> jax.stages.Wrapped:
    """Returns the jitted step. Its state is reused for the next one, and so gone."""

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, tokens: jax.Array) -> State:
        params = state["params"]
        loss, grads = jax.value_and_grad(partial(loss_of, model))(params, tokens)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        params = optax.apply_updates(params, updates)
        sums = jax.tree.map(jnp.add, state["sums"], {"loss": loss, "steps": 1.0})
        return {"params": params, "opt_state": opt_state, "sums": sums}

    return step


def lower_step(
    shape: Shape,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    batch: int,
    context: int,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> jax.stages.Lowered:
    """Lowers the step for a mesh. No array is made, so no device need be there."""
    with jax.set_mesh(mesh):
        state = abstract_state(shape, mesh, optimizer)
        sharding = NamedSharding(mesh, BATCH)
        size = (batch, context + 1)
        tokens = jax.ShapeDtypeStruct(size, jnp.int32, sharding=sharding)
        step = make_step(make_model(shape, dtype, remat), optimizer)
        return step.lower(state, tokens)


def abstract_state(
    shape: Shape, mesh: Mesh, optimizer: optax.GradientTransformation
) -> State:
    """Returns the shapes, dtypes and shardings of the state."""

    def place(x: Any) -> jax.ShapeDtypeStruct:
        # A constant, such as the first count of the optimizer, has none yet.
        sharding = NamedSharding(mesh, x.sharding.spec if x.sharding else P())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.eval_shape(partial(initial_state, shape, optimizer, 0))
    return jax.tree.map(place, state)


def make_writer(
    model: Model, prompt: bytes, context: int, length: int = SAMPLE
) -> Callable[[Params, jax.Array], jax.Array]:
    """Returns a jitted function of parameters and a key that goes on with the prompt.

    Each group of devices along "data" writes its own text; the first is returned.
    """
    groups = jax.sharding.get_abstract_mesh().shape["data"]
    begin = np.frombuffer(prompt, np.uint8).astype(np.int32)
    size = max(len(begin) + length, context)
    start = np.zeros((groups, size), np.int32)
    start[:, : len(begin)] = begin

    @jax.jit
    def write(params: Params, key: jax.Array) -> jax.Array:
        def add_byte(written: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
            # What follows the last byte is not seen by it.
            first = jnp.maximum(at - context, 0)
            seen = jax.lax.dynamic_slice_in_dim(written, first, context, axis=1)
            logits = model(params, seen)
            last = jax.lax.dynamic_index_in_dim(logits, at - 1 - first, 1, False)
            byte = jax.random.categorical(jax.random.fold_in(key, at), last)
            byte = byte.astype(jnp.int32)[:, None]
            return jax.lax.dynamic_update_slice_in_dim(written, byte, at, 1), None

        places = jnp.arange(len(begin), len(begin) + length)
        written, _ = jax.lax.scan(add_byte, jax.sharding.reshard(start, BATCH), places)
        return jax.sharding.reshard(written, P())[0, : len(begin) + length]

    return write


def bits(nats: Any) -> float:
    return float(nats) / math.log(2)


def train(args: argparse.Namespace, mesh: Mesh) -> None:
    shape, data = decoder.SHAPES[args.size], text.load(args.text, args.context)
    rate = learning_rate(args.learning_rate, args.steps)
    chosen = {"method": args.method, "mask": args.mask, "keep_prob": args.keep_prob}
    chosen |= {"unbiased": args.unbiased, "clip": args.clip, "key": args.seed}
    optimizer = make_optimizer(rate, **chosen)
    dtype = jnp.bfloat16 if args.bfloat16 else jnp.float32
    model = make_model(shape, dtype, args.remat)
    step, loss = make_step(model, optimizer), jax.jit(partial(loss_of, model))
    write = make_writer(model, os.fsencode(args.prompt), args.context)
    size = args.batch, args.context

    def spread(tokens: np.ndarray) -> jax.Array:
        # Every process has the whole batch, and keeps its own part.
        sharding = NamedSharding(mesh, BATCH)
        return jax.make_array_from_callback(
            tokens.shape, sharding, lambda part: tokens[part]
        )

    def train_step(state: State, number: int) -> State:
        return step(state, spread(text.batch_of(data.train, args.seed, number, *size)))

    held_out = text.validation_batches(data.validation, VALIDATION_BATCHES, *size)

    def make_report(state: State, number: int) -> tuple[State, runs.Record]:
        sums, params = state["sums"], state["params"]
        losses = [loss(params, spread(tokens)) for tokens in held_out]
        written = np.asarray(write(params, jax.random.key(number)), np.uint8)
        sample = text.readable(written.tobytes())
        record = {"train_bits": bits(sums["loss"] / sums["steps"])}
        record["validation_bits"] = bits(np.mean(losses))
        zeros = jax.tree.map(jnp.zeros_like, sums)
        return state | {"sums": zeros}, record | {"sample": sample}

    config = {name: getattr(args, name) for name in DECISIVE}
    checksum = zlib.crc32(data.validation, zlib.crc32(data.train))
    source = str(args.text or "Python's library")
    config |= {
        "example": "transformer.py",
        "text": source,
        "checksum_of_text": checksum,
    }
    every = args.report_every, args.save_every
    picture = args.output / "curves.png"
    plan = runs.Plan(args.output, config, args.steps, *every)
    state = jax.jit(partial(initial_state, shape, optimizer, args.seed))()

    def draw(records: list[runs.Record]) -> None:
        curves.draw({str(args.output): records}, picture)

    if runs.is_first_process():
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
        amount = f"{len(data.train):,} bytes of {source}"
        print(
            f"{parameters:,} parameters, {amount}, on {runs.in_words(mesh)}", flush=True
        )
    runs.train(plan, state, train_step, make_report, draw)
    if runs.is_first_process():
        print(f"Wrote {picture} and records.jsonl")


def main() -> None:
    args = options.transformer()
    runs.start_processes(args)
    devices = jax.device_count()
    data, tensor = args.mesh or (devices, 1)
    if data * tensor > devices:
        sys.exit(f"--mesh must have at most {devices} devices, got {data},{tensor}")
    if data * tensor < devices and jax.process_count() > 1:
        # A process without a device in the mesh could not take part.
        rule = f"--mesh must have all {devices} devices of several processes"
        sys.exit(f"{rule}, got {data},{tensor}")
    if args.batch % data:
        rule = f"--batch must be a multiple of the number of devices, {data}"
        sys.exit(f"{rule}, got {args.batch}")
    mesh = make_mesh(data, tensor)
    with jax.set_mesh(mesh):
        train(args, mesh)


if __name__ == "__main__":
    main()
