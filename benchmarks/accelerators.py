"""What XLA makes of a step with Learning Rate Dropout for a TPU or a GPU.

    pip install "jax[tpu]"             # for v4, v5e, v5p, v6e
    python benchmarks/accelerators.py --targets v5e --trees ResNet-34
    python benchmarks/accelerators.py --targets h100 --trees "one leaf"
    python benchmarks/accelerators.py --targets h100 --trees "one matrix" --structured
    python benchmarks/accelerators.py --targets v5e --check   # seconds; for CI
    python benchmarks/accelerators.py --targets v5e v5p --transformer 1B

It compiles ahead of time for a device that need not be there. Nothing runs, so these
are a compiler's figures, not times. For h100 it says what to install. Instructions are
counted in the device's own code if nvidia-cuda-nvdisasm is installed, else in PTX. One
environment serves TPUs or GPUs, not both. It writes
benchmarks/results/<target>-compiled.json, and keeps the other rows of that file.

--transformer compiles the whole training step of examples/transformer.py for a mesh of
TPUs, 10 minutes per target, and needs the extra `examples`.
"""

import argparse
import itertools
import json
import sys

import compiled  # first: it sets what JAX reads when it is imported
import jax
import jax.numpy as jnp
import optax
import records
import step_cost
import timing
from compiled import Figures

import lrd_optax

COUNTS = {f"{n} leaves": n for n in (10, 100, 500, 1000)}
TREES = timing.TREES | {k: step_cost.shapes_of(10**7, n) for k, n in COUNTS.items()}
TREES["one matrix"] = [(2560, 4096)]
MESHES = ["one"] + [f"{t} {x}" for t in ("auto", "explicit") for x in compiled.LAYOUTS]
DROPOUT = lrd_optax.learning_rate_dropout(0.5, key=0)
VARIANTS: dict[str, timing.Variant] = {
    "base": optax.identity(),
    "LRD": DROPOUT,
    "bernoulli": step_cost.bernoulli_dropout(0.5),
}

HEADER = (
    f"{'':56}{'kernels':>8}{'scalar':>7}{'cycles':>8}{'instr':>7}{'regs':>5}"
    f"{'HBM b/par':>11}{'chip MB':>9}{'coll':>5}{'compile s':>10}{'ratio':>7}"
)


def row(title: str, cost: Figures, base: Figures, shapes: timing.Shapes) -> str:
    cycles = f"{cost.cycles / base.cycles:.3f}" if cost.cycles and base.cycles else "-"
    instructions = f"{cost.instructions:.1f}" if cost.instructions else "-"
    chip = "-" if cost.on_chip is None else f"{cost.on_chip / 1e6:.1f}"
    extra = (cost.temporaries - base.temporaries) / timing.parameters(shapes)
    return (
        f"{title:56}{cost.kernels:8}{cost.scalar_operations:7}{cycles:>8}"
        f"{instructions:>7}{cost.registers or '-':>5}{extra:11.6f}{chip:>9}"
        f"{cost.collectives:5}{cost.compile_seconds:10.2f}"
        f"{cost.compile_seconds / base.compile_seconds:7.2f}"
    )


def table(target: str, args: argparse.Namespace) -> None:
    """Compiles every tree, dtype, optimizer and mesh. Writes the file as it goes."""
    machine = compiled.machine(target)
    devices = compiled.devices(target)
    path = timing.RESULTS / f"{target}-compiled.json"
    path.parent.mkdir(exist_ok=True)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    print(f"{target}. {compiled.NOTE}\n{HEADER}", flush=True)
    optimizer = timing.OPTIMIZERS["SGD"]
    compiled.figures(target, devices, "one", optimizer(), [(8,)])  # pays for start-up
    cases = itertools.product(args.trees, args.dtypes, args.optimizers, args.meshes)
    variants = VARIANTS
    if args.structured:
        variants = {"base": VARIANTS["base"]} | step_cost.STRUCTURED
    for tree, dtype, optimizer, mesh in cases:
        shapes, base = TREES[tree], None
        for name, variant in variants.items():
            slow = name == "bernoulli"
            if slow and args.no_bernoulli:
                continue
            title = f"{tree}, {dtype}, {optimizer}, {mesh}, {name}"
            if slow and len(shapes) > 150:  # would take minutes
                print(f"{title:56}{'-':>8}", flush=True)
                continue
            tx = timing.behind(timing.OPTIMIZERS[optimizer](), variant)
            arguments = target, devices, mesh, tx, shapes, dtype
            cost = compiled.figures(*arguments, 1 if slow else args.repeats)
            base = base or cost
            print(row(title, cost, base, shapes), flush=True)
            case = {"tree": tree, "dtype": dtype, "optimizer": optimizer}
            case |= {"mesh": mesh, "variant": name}
            rows = [r for r in rows if {k: r[k] for k in case} != case]
            rows.append(case | cost._asdict() | {"machine": machine})
        out = {"target": target, "note": compiled.NOTE, "rows": rows}
        whole = path.with_suffix(".new")  # so that no interruption leaves half a file
        whole.write_text(records.dumps(out) + "\n")
        whole.replace(path)
    print("written:", path, flush=True)


SMALL: timing.Shapes = [(3, 3, 16, 32), (64,), (32, 48)]
# Fewer leaves than 24 of these shapes are merged into a few kernels on the GPU.
CHECKED = {
    "24 leaves": (SMALL * 8, "one"),
    "48 leaves": (SMALL * 16, "one"),
    "one leaf": ([(10**7,)], "one"),
    "12 leaves, auto rows": (SMALL * 4, "auto rows"),
    "12 leaves, auto columns": (SMALL * 4, "auto columns"),
    "12 leaves, explicit rows": (SMALL * 4, "explicit rows"),
    "12 leaves, explicit columns": (SMALL * 4, "explicit columns"),
}


def stored(updates, state, params=None):
    """Applies the library's masks, but stores each in memory before it is used."""
    masks = lrd_optax.sample_mask(DROPOUT, state, updates)
    masks = jax.lax.optimization_barrier(masks)
    _, state = DROPOUT.update(updates, state)
    return jax.tree.map(lambda m, u: jnp.where(m, u, 0), masks, updates), state


# Variants beside LRD in which the check must find none.
STRUCTURED = {
    name: step_cost.STRUCTURED[name] for name in ("row", "column", "tensor", "cycle")
}
# Variants in which the check must find a fault.
PLANTED = {
    "bernoulli": VARIANTS["bernoulli"],
    "stored": optax.GradientTransformation(DROPOUT.init, stored),
}


def wrong(name: str, costs: dict[str, Figures], bases: dict[str, Figures]) -> list[str]:
    """Returns what a variant adds that it must not, one sentence per fault."""

    def above(case: str, field: str) -> int:
        value = getattr(costs[case], field) or 0  # None on a target without it
        return max(0, value - (getattr(bases[case], field) or 0))

    faults = []
    for case, cost in costs.items():
        hundredth = timing.parameters(CHECKED[case][0]) // 100
        if (more := above(case, "kernels")) > 8:
            faults.append(f"{case}: {name} adds {more} kernels.")
        if more := above(case, "collectives"):
            faults.append(f"{case}: {name} adds {more} collectives.")
        if (more := above(case, "temporaries")) > 2048 + hundredth:
            faults.append(f"{case}: {name} takes {more} more bytes of memory.")
        if case == "one leaf" and (more := above(case, "on_chip")) > hundredth:
            faults.append(f"{case}: {name} puts {more} more bytes on the chip.")
        if cost.registers and cost.registers > max(64, bases[case].registers or 0):
            faults.append(f"{case}: {name} has {cost.registers} registers per thread.")
        if (more := above(case, "instructions")) > 32:
            faults.append(
                f"{case}: {name} takes {more:.0f} more instructions per element."
            )
    few, many = "24 leaves", "48 leaves"
    if many in costs:
        if (more := above(many, "kernels") - above(few, "kernels")) > 2:
            faults.append(f"24 more leaves: {name} adds {more} more kernels.")
        more = above(many, "temporaries") - above(few, "temporaries")
        if more > 0.01 * timing.parameters(SMALL * 8):
            faults.append(f"24 more leaves: {name} takes {more} more bytes of memory.")
    return faults


def check(target: str) -> bool:
    """Returns whether LRD adds little to a small step, and bad masks are caught."""
    devices = compiled.devices(target)
    costs: dict[str, dict[str, Figures]] = {}
    print(f"{target}. {compiled.NOTE}\n{HEADER}", flush=True)
    for name, variant in (VARIANTS | STRUCTURED | PLANTED).items():
        # Planted masks are slow to compile, and two cases suffice.
        cases = ("24 leaves", "one leaf") if name in PLANTED else CHECKED
        if name in STRUCTURED:
            cases = ("24 leaves", "12 leaves, auto columns", "12 leaves, explicit rows")
        tx = timing.behind(timing.OPTIMIZERS["SGD+momentum"](), variant)
        costs[name] = {}
        for case in cases:
            shapes, mesh = CHECKED[case]
            cost = compiled.figures(target, devices, mesh, tx, shapes)
            costs[name][case] = cost
            print(row(f"{case}, {name}", cost, costs["base"][case], shapes), flush=True)
    problems = []
    for name in ("LRD", *STRUCTURED):
        problems += wrong(name, costs[name], costs["base"])
    for name in PLANTED:
        caught = wrong(name, costs[name], costs["base"])
        print(f"{name} is caught:", *caught)
        if not caught:
            problems.append(f"The check does not catch the planted mask {name!r}.")
    for problem in problems:
        print("FAILED", target, problem, file=sys.stderr)
    return not problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, optimizers = parser.add_argument, list(timing.OPTIMIZERS)
    for flag, default, choices in (
        ("--targets", ["v5e"], [*compiled.TPU, "h100"]),
        ("--trees", list(TREES), list(TREES)),
        ("--optimizers", optimizers, optimizers),
        ("--dtypes", ["float32", "bfloat16"], ["float32", "bfloat16"]),
        ("--meshes", ["one"], MESHES),
    ):
        add(flag, nargs="+", metavar="NAME", default=default, choices=choices)
    repeats = {"type": int, "default": 3, "choices": range(1, 100), "metavar": "N"}
    add("--repeats", **repeats, help="compilations; the fastest counts; default: 3")
    add("--structured", action="store_true", help="structured masks, and Magma")
    add("--no-bernoulli", action="store_true", help="leave the slow variant out")
    text = "instead: examples/transformer.py of this size, on a mesh of TPUs"
    add("--transformer", metavar="SIZE", help=text)
    add("--check", action="store_true", help="small trees; exit 1 if LRD costs much")
    args = parser.parse_args()
    if args.check:
        passed = [check(target) for target in args.targets]  # all of them
        sys.exit(not all(passed))
    for target in args.targets:
        if args.transformer:
            import compiled_transformer  # Flax and the like

            compiled_transformer.table(target, args.transformer)
        else:
            table(target, args)


if __name__ == "__main__":
    main()
