"""Times whole optimizer steps against each other, fairly, in one run.

All variants work on one set of buffers: parameters and the state of the base optimizer,
which are donated, and one fixed gradient. In every round the variants run in a new
random order, so that none always inherits the caches of the same other one. Each runs
one untimed step before the timed ones. Ratios are taken within a round.
"""

import gc
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import records

Shapes = list[tuple[int, ...]]
Variant = (
    optax.GradientTransformation
    | Callable[[optax.GradientTransformation], optax.GradientTransformation]
)

RESULTS = Path(__file__).parent / "results"


class Cost(NamedTuple):
    """What one variant costs, compared with the base optimizer (the first variant)."""

    milliseconds: float  # per step, median
    ratio: float  # to the base, median over the rounds
    low: float  # quartiles of that ratio
    high: float
    bytes_a_parameter: float  # temporary memory beyond that of the base
    compile_seconds: float  # trace, lower and compile, from empty caches
    compile_ratio: float


def resnet34() -> Shapes:
    """The 36 convolutions of ResNet-34 for CIFAR, each with its batch norm."""
    shapes: Shapes = []

    def convolution(size: int, inputs: int, outputs: int) -> None:
        shapes.extend([(size, size, inputs, outputs), (outputs,), (outputs,)])

    convolution(3, 3, 64)
    inputs = 64
    for blocks, outputs in zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True):
        for _ in range(blocks):
            convolution(3, inputs, outputs)
            convolution(3, outputs, outputs)
            if inputs != outputs:
                convolution(1, inputs, outputs)
            inputs = outputs
    return shapes


def gpt2_small() -> Shapes:
    """The parameters of GPT-2 small: 124 million in 148 leaves."""
    norm = [(768,), (768,)]
    attention = [(768, 2304), (2304,), (768, 768), (768,)]
    feed_forward = [(768, 3072), (3072,), (3072, 768), (768,)]
    block = [*norm, *attention, *norm, *feed_forward]
    return [(50257, 768), (1024, 768), *block * 12, *norm]


TREES = {
    "ResNet-34": resnet34(),
    "one leaf": [(10_000_000,)],
    "GPT-2 small": gpt2_small(),
}

OPTIMIZERS = {
    "SGD": lambda: optax.sgd(1e-3),
    "SGD+momentum": lambda: optax.sgd(1e-3, momentum=0.9),
    "Adam": lambda: optax.adam(1e-3),
    "AdamW": lambda: optax.adamw(1e-3),
}


def parameters(shapes: Shapes) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


def compile_step(
    tx: optax.GradientTransformation, *arguments: Any
) -> tuple[Any, Any, float]:
    """Returns a step, lowered and compiled, and the seconds that both took.

    It starts from empty caches. The step donates the parameters and the state.
    """

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    jax.clear_caches()
    gc.collect()  # so that this is not part of the time of the next variant
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments)
    compiled = lowered.compile()
    return lowered, compiled, time.perf_counter() - start


def behind(base: optax.GradientTransformation, variant: Variant) -> Any:
    """Returns the step of a variant, whose state is (that of `base`, all else)."""
    is_last = isinstance(variant, optax.GradientTransformation)
    return optax.chain(base, variant) if is_last else variant(base)


def measure(
    base: optax.GradientTransformation,
    variants: dict[str, Variant],
    shapes: Shapes,
    dtype: Any = jnp.float32,
    *,
    rounds: int = 15,
    slow: tuple[str, ...] = (),
    compiles: int = 3,
) -> dict[str, Cost]:
    """Returns the cost of each variant, chained behind `base`, and of `base` first.

    A variant that wraps `base` is a function that takes it. See `behind`.

    Variants named in `slow` run in every fourth round and are compiled once.
    """
    variants = {"base": optax.identity(), **variants}
    rng = np.random.default_rng(0)
    params = [
        jnp.asarray(0.1 * rng.standard_normal(s, np.float32), dtype) for s in shapes
    ]
    gradient = [jnp.asarray(rng.standard_normal(s, np.float32), dtype) for s in shapes]
    base_state = base.init(params)
    states = {name: behind(base, v).init(params)[1] for name, v in variants.items()}

    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    steps = {}
    for attempt in range(compiles):
        names = [name for name in variants if attempt == 0 or name not in slow]
        order.shuffle(names)
        for name in names:
            tx = behind(base, variants[name])
            state = base_state, states[name]
            _, steps[name], elapsed = compile_step(tx, params, state, gradient)
            seconds[name].append(elapsed)

    def run(name: str, times: int) -> float:
        nonlocal params, base_state
        start = time.perf_counter()
        for _ in range(times):
            params, (base_state, states[name]) = steps[name](
                params, (base_state, states[name]), gradient
            )
        jax.block_until_ready(params)
        return (time.perf_counter() - start) / times

    run("base", 1)
    # At least 20 ms per sample, so that the clock and the dispatch do not matter.
    repeats = max(1, min(200, int(0.02 / run("base", 3)) + 1))
    samples: list[dict[str, float]] = []
    for number in range(rounds):
        names = [n for n in variants if n not in slow or number % 4 == 0]
        order.shuffle(names)
        sample = {}
        for name in names:
            run(name, 1)
            sample[name] = run(name, 2 if name in slow else repeats)
        samples.append(sample)

    def cost(name: str) -> Cost:
        present = [s for s in samples if name in s]
        ratios = [s[name] / s["base"] for s in present]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        extra = temporary_bytes(steps[name]) - temporary_bytes(steps["base"])
        return Cost(
            milliseconds=1e3 * statistics.median(s[name] for s in present),
            ratio=float(middle),
            low=float(low),
            high=float(high),
            bytes_a_parameter=extra / parameters(shapes),
            compile_seconds=min(seconds[name]),
            compile_ratio=min(seconds[name]) / min(seconds["base"]),
        )

    return {name: cost(name) for name in variants}


def without_jit(
    base: optax.GradientTransformation,
    drop: optax.GradientTransformation,
    shapes: Shapes,
    rounds: int = 31,
) -> float:
    """Returns the time of a step with `drop` over that without, both without jit."""
    params = [jnp.ones(shape) for shape in shapes]
    transforms = base, optax.chain(base, drop)
    states = [tx.init(params) for tx in transforms]

    def run(index: int) -> float:
        start = time.perf_counter()
        updates, states[index] = transforms[index].update(params, states[index], params)
        jax.block_until_ready(optax.apply_updates(params, updates))
        return time.perf_counter() - start

    run(0), run(1)
    return statistics.median(
        seconds / alone for alone, seconds in ((run(0), run(1)) for _ in range(rounds))
    )


def temporary_bytes(compiled: Any) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


HEADER = (
    f"{'':58}{'ms':>9}{'ratio':>8}  {'quartiles':13}"
    f"{'bytes/param':>12}{'compile s':>11}{'ratio':>7}"
)


def row(title: str, cost: Cost) -> str:
    quartiles = f"{cost.low:.2f} to {cost.high:.2f}"
    return (
        f"{title:58}{cost.milliseconds:9.3f}{cost.ratio:8.3f}  {quartiles:13}"
        f"{cost.bytes_a_parameter:12.5f}{cost.compile_seconds:11.2f}"
        f"{cost.compile_ratio:7.2f}"
    )


def machine() -> dict[str, Any]:
    """Returns the device and the versions that the numbers come from."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": records.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "optax": optax.__version__,
    }


def write(name: str, results: dict[str, Any]) -> Path:
    """Writes `results` to a file named after the device, and returns its path."""
    device = re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower())
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{device}-{name}.json"
    path.write_text(records.dumps({"machine": machine(), **results}) + "\n")
    return path
