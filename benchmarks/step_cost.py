"""What a step with Learning Rate Dropout costs, as a ratio to the step without it.

    python benchmarks/step_cost.py            # the table, about 12 minutes on 2 cores
    python benchmarks/step_cost.py --optimizers Adam --trees ResNet-34 --dtypes float32
    python benchmarks/step_cost.py --scale    # to 300 M parameters and 1,000 leaves
    python benchmarks/step_cost.py --small    # many leaves of (3, 4); without jit
    python benchmarks/step_cost.py --structured    # masks of rows, ..., Magma

Writes benchmarks/results/<device>-step_cost.json (or _scale, _small, _structured).
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax
import timing

import lrd_optax
from lrd_optax import experimental


def bernoulli_dropout(keep_prob: float) -> optax.GradientTransformation:
    """Learning Rate Dropout by one `jax.random.bernoulli` mask per leaf."""

    def init(params):
        return jax.random.key(0)

    def update(updates, key, params=None):
        leaves, treedef = jax.tree.flatten(updates)
        key, *keys = jax.random.split(key, len(leaves) + 1)
        kept = [
            jnp.where(jax.random.bernoulli(k, keep_prob, leaf.shape), leaf, 0)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, kept), key

    return optax.GradientTransformation(init, update)


def magma(base: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns Magma of `base`, with the state of `base` apart from the rest of its own.

    All leaves of two or more axes are blocks.
    """
    tx = experimental.magma(base, key=0)

    def init(params):
        inner, *rest = tx.init(params)
        return inner, rest

    def update(updates, state, params=None):
        state = experimental.MagmaState(state[0], *state[1])
        updates, (inner, *rest) = tx.update(updates, state, params)
        return updates, (inner, rest)

    return optax.GradientTransformation(init, update)


def ours(keep_prob: float = 0.5, **kwargs: Any) -> optax.GradientTransformation:
    return lrd_optax.learning_rate_dropout(keep_prob, key=0, **kwargs)


STRUCTURED: dict[str, timing.Variant] = {
    "element": ours(),
    "row": ours(granularity="row"),
    "column": ours(granularity="column"),
    "tensor": ours(granularity="tensor"),
    "axes (0, -1)": ours(granularity=(0, -1)),
    "held for 10 steps": ours(hold_steps=10),
    "cycle": ours(sampler="cycle"),
    "cycle of rows": ours(sampler="cycle", granularity="row"),
    "unbiased cycle": ours(sampler="cycle", unbiased=True),
    "Magma": magma,
}


def table(args: argparse.Namespace) -> None:
    """Times every optimizer, dtype and tree, alone and with each variant."""
    rows = []
    print(timing.HEADER)
    for tree in args.trees:
        for dtype in args.dtypes:
            for optimizer in args.optimizers:
                variants = {f"ours {p}": ours(p) for p in args.keep_probs}
                if args.structured:
                    variants = STRUCTURED
                elif not args.no_bernoulli:  # its cost does not depend on keep_prob
                    variants["bernoulli"] = bernoulli_dropout(args.keep_probs[0])
                costs = timing.measure(
                    timing.OPTIMIZERS[optimizer](),
                    variants,
                    timing.TREES[tree],
                    jnp.dtype(dtype),
                    rounds=args.rounds,
                    slow=("bernoulli",),
                )
                for variant, cost in costs.items():
                    title = f"{tree}, {dtype}, {optimizer}, {variant}"
                    print(timing.row(title, cost), flush=True)
                    rows.append(
                        {"tree": tree, "dtype": dtype, "optimizer": optimizer}
                        | {"variant": variant}
                        | cost._asdict()
                    )
    name = "step_cost_structured" if args.structured else "step_cost"
    print("written:", timing.write(name, {"rows": rows}))


def shapes_of(parameters: int, leaves: int) -> timing.Shapes:
    """Returns `leaves` shapes of about equal size: 2-D and 1-D, in different widths."""
    size = parameters // leaves
    widths = (64, 96, 128, 192, 256, 384, 512, 768)
    shapes: timing.Shapes = []
    for i in range(leaves):
        width = widths[i // 2 % len(widths)]
        rows = max(1, size // width)
        shapes.append((rows, width) if i % 2 == 0 else (rows * width,))
    return shapes


def scale(args: argparse.Namespace) -> None:
    """Times Adam in float32, per parameter, as the model and then the tree grows."""
    rows = []
    sizes = [(n * 10**6, 30) for n in (1, 3, 10, 30, 100, 300)]
    counts = [(10**7, n) for n in (10, 30, 100, 300, 1000)]
    title = f"{'parameters':>12}{'leaves':>8}{'base ns':>9}{'ours ns':>9}{'ratio':>7}"
    print(title + f"{'base compile s':>16}{'ours s':>8}{'ours ms/leaf':>14}")
    for parameters, leaves in sizes + counts:
        shapes = shapes_of(parameters, leaves)
        costs = timing.measure(
            optax.adam(1e-3),
            {"ours": ours()},
            shapes,
            rounds=args.rounds,
        )
        base, dropped = costs["base"], costs["ours"]
        total = timing.parameters(shapes)
        row = {
            "parameters": total,
            "leaves": leaves,
            "base_ns_a_parameter": 1e6 * base.milliseconds / total,
            "ours_ns_a_parameter": 1e6 * dropped.milliseconds / total,
            "ratio": dropped.ratio,
            "base_compile_seconds": base.compile_seconds,
            "ours_compile_seconds": dropped.compile_seconds,
        }
        rows.append(row)
        print(
            f"{total:12,}{leaves:8}{row['base_ns_a_parameter']:9.3f}"
            f"{row['ours_ns_a_parameter']:9.3f}{dropped.ratio:7.3f}"
            f"{base.compile_seconds:16.2f}{dropped.compile_seconds:8.2f}"
            f"{1e3 * dropped.compile_seconds / leaves:14.2f}",
            flush=True,
        )
    print("written:", timing.write("step_cost_scale", {"rows": rows}))


def small(args: argparse.Namespace) -> None:
    """Compiles plain SGD on many leaves of (3, 4), and times 50 of them without jit."""
    drop, rows = ours(), []
    print(timing.HEADER)
    for leaves in (250, 500, 1000, 2000):
        shapes: timing.Shapes = [(3, 4)] * leaves
        base, variants = optax.sgd(1e-3), {"ours": drop}
        costs = timing.measure(base, variants, shapes, rounds=args.rounds)
        for variant, cost in costs.items():
            print(timing.row(f"{leaves} leaves, {variant}", cost), flush=True)
            rows.append({"leaves": leaves, "variant": variant} | cost._asdict())
    ratio = timing.without_jit(optax.sgd(1e-3), drop, [(3, 4)] * 50)
    print(f"50 leaves without jit, update and apply: {ratio:.2f}")
    results = {"rows": rows, "without_jit_ratio": ratio}
    print("written:", timing.write("step_cost_small", results))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scale", action="store_true", help="grow the model and the tree instead")
    add("--structured", action="store_true", help="structured masks, and Magma")
    add("--small", action="store_true", help="many small leaves, and without jit")
    names = {"nargs": "+", "metavar": "NAME"}
    optimizers, trees = list(timing.OPTIMIZERS), list(timing.TREES)
    dtypes = ["float32", "bfloat16"]
    add("--optimizers", default=optimizers, choices=optimizers, **names)
    add("--trees", default=trees, choices=trees, **names)
    add("--dtypes", default=dtypes, choices=dtypes, **names)
    add("--keep-probs", nargs="+", type=float, default=[0.5, 0.9], metavar="P")
    add("--rounds", type=int, default=11, help="rounds of interleaved samples")
    add("--no-bernoulli", action="store_true", help="leave the slow variant out")
    args = parser.parse_args()
    run = scale if args.scale else small if args.small else table
    run(args)


if __name__ == "__main__":
    main()
