"""Whole training steps of the examples at full size, dense and with a mask, in one run.

    python benchmarks/full_size.py                          # 15 minutes on 2 CPU cores
    python benchmarks/full_size.py --models "transformer 1M, AdamW" --rounds 5

A step is all that a training does at each step: batch, forward pass, gradient, update.
In every round each variant makes its steps, in a new random order, and ratios are taken
within the round. It needs the extra `examples`, makes up the data, and writes
benchmarks/results/<device>-full_size.json.
"""

import argparse
import functools
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import records
import timing
from jax.sharding import AxisType, NamedSharding, PartitionSpec

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import cifar10
import decoder
import resnet
import transformer
from flax import nnx

BATCH = {"ResNet-34": 128, "transformer": 16}
CONTEXT = 128
Optimizers = dict[str, optax.GradientTransformation]  # the first one is dense


class Program(NamedTuple):
    """A training step that is ready to run: state -> the next state."""

    step: Callable[[Any], Any]
    state: Any
    temporaries: int  # bytes
    compile_seconds: float


class Cost(NamedTuple):
    parameters: int
    parameter_bytes: int
    state_bytes: int  # of the optimizer
    temporary_bytes: int
    milliseconds: float  # per step, median
    ratio: float  # to dense, median over the rounds
    low: float  # quartiles of that ratio
    high: float
    compile_seconds: float


def resnet34(base: str) -> Optimizers:
    rate = cifar10.make_schedule(0.1, 78_000)
    penalty = optax.add_decayed_weights(cifar10.L2)
    dense = optax.chain(penalty, cifar10.OPTIMIZERS[base](rate))
    return {"dense": dense, "LRD": cifar10.make_optimizer(base, rate, 0.5, 0)}


def transformers() -> Optimizers:
    make = functools.partial(
        transformer.make_optimizer, transformer.learning_rate(1e-3, 2000)
    )
    return {
        "dense": make("dense"),
        "LRD, element": make("lrd", "element"),
        "LRD, row": make("lrd", "row"),
        "LRD, tensor": make("lrd", "tensor"),
        "SkipUpdate": make("skipupdate"),
        "Magma": make("magma"),
    }


MODELS: dict[str, Callable[[], Optimizers]] = {
    "ResNet-34, SGD+momentum": functools.partial(resnet34, "sgdm"),
    "ResNet-34, Adam": functools.partial(resnet34, "adam"),
    "transformer 1M, AdamW": transformers,
    "transformer 10M, AdamW": transformers,
}


def resnet_step(optimizer: optax.GradientTransformation) -> tuple[Any, Any, Any]:
    """Returns a function that lowers the step, its state, and its other arguments."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    images = rng.integers(256, size=(1024, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(10, size=1024, dtype=np.int32)
    batch = np.arange(BATCH["ResNet-34"], dtype=np.int32)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    graph, _ = nnx.split(nnx.eval_shape(lambda: resnet.ResNet(rngs=nnx.Rngs(0))))
    channels = cifar10.channels_of(images)
    step = cifar10.make_train_step(graph, optimizer, channels, key, mesh)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def initial():
        return cifar10.make_state(resnet.ResNet(rngs=nnx.Rngs(0)), optimizer)

    state = initial()
    arrays = [cifar10.replicate(array, mesh) for array in (images, labels, batch)]
    return lambda: step.lower(state, *arrays), state, arrays


def transformer_step(
    optimizer: optax.GradientTransformation, size: str
) -> tuple[Any, Any, Any]:
    """Returns a function that lowers the step, its state, and its other arguments."""
    shape, mesh = decoder.SHAPES[size], transformer.make_mesh(1, 1)
    tokens = np.random.default_rng(0).integers(
        256, size=(BATCH["transformer"], CONTEXT + 1), dtype=np.int32
    )
    initial = functools.partial(transformer.initial_state, shape, optimizer, 0)
    with jax.set_mesh(mesh):
        state = jax.jit(initial)()
        arrays = [jax.device_put(tokens, NamedSharding(mesh, transformer.BATCH))]

    def lower():
        return transformer.lower_step(
            shape, mesh, optimizer, BATCH["transformer"], CONTEXT
        )

    return lower, state, arrays


def prepare(model: str, optimizer: optax.GradientTransformation) -> Program:
    if model.startswith("ResNet"):
        lower, state, arrays = resnet_step(optimizer)
    else:
        size = model.split()[1].strip(",")
        lower, state, arrays = transformer_step(optimizer, size)
    jax.clear_caches()
    gc.collect()
    start = time.perf_counter()
    program = lower().compile()
    seconds = time.perf_counter() - start
    temporaries = timing.temporary_bytes(program)
    return Program(lambda s: program(s, *arrays), state, temporaries, seconds)


def size_of(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def measure(model: str, rounds: int) -> dict[str, Cost]:
    programs = {name: prepare(model, tx) for name, tx in MODELS[model]().items()}
    states = {name: program.state for name, program in programs.items()}

    def run(name: str, times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            states[name] = programs[name].step(states[name])
        jax.block_until_ready(states[name])
        return (time.perf_counter() - start) / times

    run("dense", 1)
    # At least half a second per sample, so that the clock does not matter.
    repeats = max(1, int(0.5 / run("dense", 1)))
    order, samples = random.Random(0), []
    for number in range(rounds):
        names = list(programs)
        order.shuffle(names)
        samples.append({name: run(name, repeats) for name in names})
        print(f"{model}: round {number + 1} of {rounds}", end="\r", file=sys.stderr)
    print(end="\033[K", file=sys.stderr)

    def cost(name: str) -> Cost:
        ratios = [sample[name] / sample["dense"] for sample in samples]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        params = states[name]["params"]
        return Cost(
            parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
            parameter_bytes=size_of(params),
            state_bytes=size_of(states[name]["opt_state"]),
            temporary_bytes=programs[name].temporaries,
            milliseconds=1e3 * statistics.median(s[name] for s in samples),
            ratio=middle,
            low=low,
            high=high,
            compile_seconds=programs[name].compile_seconds,
        )

    return {name: cost(name) for name in programs}


HEADER = (
    f"{'':38}{'parameters':>12}{'MB':>7}{'state MB':>9}{'more':>6}{'temp MB':>9}"
    f"{'ms':>9}{'ratio':>7}  {'quartiles':14}{'compile s':>10}"
)


def row(title: str, cost: Cost, dense: Cost) -> str:
    quartiles = f"{cost.low:.3f} to {cost.high:.3f}"
    return (
        f"{title:38}{cost.parameters:12,}{cost.parameter_bytes / 1e6:7.1f}"
        f"{cost.state_bytes / 1e6:9.1f}{cost.state_bytes - dense.state_bytes:6}"
        f"{cost.temporary_bytes / 1e6:9.1f}{cost.milliseconds:9.1f}{cost.ratio:7.3f}"
        f"  {quartiles:14}{cost.compile_seconds:10.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, names = parser.add_argument, list(MODELS)
    add("--models", nargs="+", metavar="NAME", default=names, choices=names)
    add("--rounds", type=int, metavar="N", default=15, help="default: 15")
    args = parser.parse_args()
    rows = []
    print(HEADER)
    for model in args.models:
        costs = measure(model, args.rounds)
        for name, cost in costs.items():
            print(row(f"{model}, {name}", cost, costs["dense"]), flush=True)
            case = {"model": model, "variant": name}
            rows.append(case | records.rounded(cost._asdict(), 5))
    print("written:", timing.write("full_size", {"rows": rows}))


if __name__ == "__main__":
    main()
