"""Compiles the training step of examples/transformer.py for a mesh that is not there.

accelerators.py prints the table: python benchmarks/accelerators.py --transformer 1B
"""

import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import compiled  # first: it sets what JAX reads when it is imported
import jax
import jax.numpy as jnp
import numpy as np
import records
import timing
from jax.sharding import AxisType, Mesh

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import decoder
import transformer

# Devices along "data" and along "tensor". One v5e has 16 GB: too few for the
# parameters, the gradient and the state of AdamW, which are 16 bytes per parameter.
MESHES = {"v5e": (1, 4)}
MESH = (2, 2)
BATCH, CONTEXT = 8, 2048
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense"},
    "LRD, element": {"method": "lrd", "mask": "element"},
    "LRD, row": {"method": "lrd", "mask": "row"},
    "LRD, tensor": {"method": "lrd", "mask": "tensor"},
    "SkipUpdate": {"method": "skipupdate"},
    "Magma": {"method": "magma"},
}


class Step(NamedTuple):
    """What the compiler says about a whole training step, on each device."""

    kernels: int
    cycles: int
    collectives: int
    arguments: int  # bytes: parameters, state and batch
    temporaries: int  # bytes
    peak: int  # bytes in use at once, at most
    compile_seconds: float


def cycles_of(text: str, layers: int) -> int:
    """Returns the cycles of a step. What is not in the entry is in a loop over layers.

    There is one loop for the forward pass and one for the gradient.
    """
    entry = text[text.index("\nENTRY") :].split("\n}")[0]
    outer, whole = (
        sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', part)))
        for part in (entry, text)
    )
    return outer + layers * (whole - outer)


def compile_step(mesh: Mesh, size: str, method: dict[str, Any]) -> Step:
    shape = decoder.SHAPES[size]
    optimizer = transformer.make_optimizer(1e-4, **method)
    jax.clear_caches()
    start = time.perf_counter()
    program = transformer.lower_step(
        shape, mesh, optimizer, BATCH, CONTEXT, jnp.bfloat16, remat=True
    ).compile()
    seconds = time.perf_counter() - start
    text, memory = program.as_text(), program.memory_analysis()
    return Step(
        kernels=text.count('"estimated_cycles"'),
        cycles=cycles_of(text, shape.layers),
        collectives=len(compiled.COLLECTIVE.findall(text)),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        compile_seconds=round(seconds, 1),
    )


HEADER = (
    f"{'':14}{'kernels':>8}{'cycles':>11}{'ratio':>8}{'coll':>5}{'state GB':>9}"
    f"{'temp GB':>9}{'more':>9}{'peak GB':>9}{'compile s':>10}"
)


def row(name: str, step: Step, base: Step) -> str:
    return (
        f"{name:14}{step.kernels:8}{step.cycles:11.4g}{step.cycles / base.cycles:8.4f}"
        f"{step.collectives:5}{step.arguments / 1e9:9.2f}{step.temporaries / 1e9:9.3f}"
        f"{step.temporaries - base.temporaries:+9}{step.peak / 1e9:9.3f}"
        f"{step.compile_seconds:10.1f}"
    )


def table(target: str, size: str) -> None:
    """Compiles the step with each method, and writes what the compiler says."""
    data, tensor = MESHES.get(target, MESH)
    devices = np.array(compiled.devices(target)[: data * tensor]).reshape(data, tensor)
    mesh = Mesh(devices, ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    shape = decoder.SHAPES[size]
    with jax.set_mesh(mesh):
        optimizer = transformer.make_optimizer(1e-4)
        state = transformer.abstract_state(shape, mesh, optimizer)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    print(
        f"{target}, {data} x {tensor} devices (data x tensor), {parameters:,} "
        f"parameters, batch {BATCH} x {CONTEXT}. {compiled.NOTE}\n{HEADER}"
    )
    rows: list[dict[str, Any]] = []
    base = None
    for name, method in METHODS.items():
        step = compile_step(mesh, size, method)
        base = base or step
        print(row(name, step, base), flush=True)
        rows.append({"method": name} | step._asdict())
    config = {"size": size, "parameters": parameters, "mesh": [data, tensor]}
    config |= {"batch": BATCH, "context": CONTEXT, "machine": compiled.machine(target)}
    out = {"target": target, "note": compiled.NOTE, "config": config, "rows": rows}
    path = timing.RESULTS / f"{target}-transformer_{size}.json"
    path.write_text(records.dumps(out) + "\n")
    print("written:", path, flush=True)
