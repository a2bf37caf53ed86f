"""Compiles optimizer steps for a TPU or a GPU that is not there, and reads the result.

Import it before jax: it sets what JAX reads when it is imported. One environment serves
TPUs or GPUs, not both: `devices` says what is missing. Nothing runs, so these are a
compiler's figures, not times. accelerators.py and studies/mask_forms.py print them.
"""

import contextlib
import glob
import importlib.metadata
import importlib.util
import math
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

# JAX reads these when it is imported. Without them libtpu looks for a real TPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"
# The lock of libtpu allows one process per chip, and here there is no chip.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax
import numpy as np
import timing
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

NOTE = "A compiler's figures, not times: nothing ran on a device."
TPU = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# The axes of the mesh over which the last two dimensions of a leaf lie.
LAYOUTS: dict[str, tuple[str | None, str | None]]
LAYOUTS = {"replicated": (None, None), "rows": ("x", None), "columns": (None, "y")}
LAYOUTS["both"] = ("x", "y")
COLLECTIVE = re.compile(
    r" (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)
VIEWS = {"tuple", "get-tuple-element", "bitcast"}
FREE = VIEWS | {"parameter", "constant"}
BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
# Patterns of kernels, instructions and stores (vector, bits); the last instruction.
SASS = (
    r"\n\.text\.",
    r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z][\w.]*)",
    r"STG\.E()(?:\.[US]?(\d+))?",
    "EXIT",
)
PTX = (
    r"\.entry ",
    r"^\s+(?:@!?%p\d+ )?([a-z][\w.]*)(?:\s.*)?;$",
    r"st\.global(?:\.v(\d))?\.[a-z](\d+)",
    "ret",
)


class Figures(NamedTuple):
    """What the compiler says about one step; None where it says nothing."""

    kernels: int
    scalar_operations: int  # on the scalar core of a TPU; these are not kernels
    cycles: int | None
    instructions: float | None  # per element, in the kernel of a tree of one leaf
    registers: int | None  # per thread, in the kernel that uses the most
    temporaries: int  # bytes in HBM
    on_chip: int | None  # bytes of all arrays ever put on the chip
    temp_size: int  # of memory_analysis(), which says little on TPU: see `memory`
    peak: int
    collectives: int
    compile_seconds: float


class Operation(NamedTuple):
    """A line of the optimized program. A result is (bytes, dimensions, space)."""

    name: str
    code: str
    results: list[tuple[int, str, int]]
    is_tuple: bool
    operands: list[str]
    root: bool


def devices(target: str) -> list[Any]:
    """Returns four devices that are not there. Exits if their plugin is missing."""
    plugin, pip = "libtpu", '"jax[tpu]"'
    description: dict[str, str] = {"topology_name": TPU.get(target, "gpu")}
    if target not in TPU:
        plugin, version = "jax_cuda13_plugin", jax.__version__
        pip = f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
        pip += " nvidia-cuda-nvcc nvidia-nvvm"
        config = (Path(__file__).parent / f"{target}.txtpb").read_text()
        description |= {"topology": "1x1x4", "target_config": config}
    if not importlib.util.find_spec(plugin):
        sys.exit(f"{target} needs a plugin that is missing: pip install {pip}")
    platform = "tpu" if target in TPU else "cuda"
    return topologies.get_topology_desc(platform=platform, **description).devices


def layout(mesh: Mesh, shape: tuple[int, ...], name: str) -> NamedSharding:
    """Returns how a leaf lies on the mesh. Uneven dimensions are replicated."""
    axes: list[str | None] = [None] * len(shape)
    if len(shape) > 1:
        for dimension, axis in zip((-2, -1), LAYOUTS[name], strict=True):
            if axis and shape[dimension] % mesh.shape[axis] == 0:
                axes[dimension] = axis
    return NamedSharding(mesh, PartitionSpec(*axes))


def compile_step(
    devices: list[Any], mesh: str, tx: Any, shapes: Any, dtype: Any, repeats: int
) -> tuple[Any, Any, float]:
    """Returns the step, lowered and compiled, and the fewest seconds that both took."""
    axis_type, _, name = mesh.partition(" ")
    single, grid = jax.sharding.SingleDeviceSharding(devices[0]), None
    if axis_type != "one":
        types = (AxisType.Auto if axis_type == "auto" else AxisType.Explicit,) * 2
        grid = Mesh(np.array(devices[:4]).reshape(2, 2), ("x", "y"), axis_types=types)

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        sharding = single if grid is None else layout(grid, x.shape, name)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    params = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    state = jax.eval_shape(tx.init, params)
    arguments = jax.tree.map(placed, (params, state, params))
    with contextlib.nullcontext() if grid is None else jax.set_mesh(grid):
        steps = [timing.compile_step(tx, *arguments) for _ in range(repeats)]
    return min(steps, key=lambda step: step[2])


def operations(text: str) -> list[Operation]:
    """Returns the operations of the entry computation.

    A layout on the TPU names its memory: no name is HBM, S(1) is on the chip, and S(6)
    belongs to the scalar core.
    """
    entry = text[text.index("\nENTRY") :].split("\n}")[0]
    pattern = r"\s+(ROOT )?%([\w.\-]+) = (.*?) ?([a-z][\w\-]*)\((?=[%)\w\[{-])(.*)"
    program = []
    for line in entry.splitlines()[2:]:
        match = re.match(pattern, re.sub(r"/\*.*?\*/", "", line))
        if not match:
            continue
        results = []
        for dtype, dims, at in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", match[3]):
            size = BYTES.get(dtype, 8) * math.prod(int(d) for d in dims.split(",") if d)
            space = re.search(r"S\((\d+)\)", at)
            results.append((size, dims, int(space[1]) if space else 0))
        code = "bitcast" if '"ConcatBitcast"' in line else match[4]
        is_tuple, root = match[3].startswith("("), bool(match[1])
        operands = re.findall(r"%([\w.\-]+)", match[5].split(")")[0])
        program.append(Operation(match[2], code, results, is_tuple, operands, root))
    return program


def working(program: list[Operation]) -> list[Operation]:
    """Returns the operations that are no views, without asynchronous copies.

    These run beside the others.
    """
    work = [o for o in program if o.code not in FREE]
    return [o for o in work if not o.code.endswith(("-start", "-done"))]


def is_scalar(operation: Operation) -> bool:
    """Returns whether it works on single numbers, on the scalar core of a TPU."""
    return all(not dims or space == 6 for _, dims, space in operation.results)


def memory(program: list[Operation]) -> tuple[int, int]:
    """Returns the bytes of temporaries in HBM and of all arrays put on the chip.

    On a TPU `temp_size_in_bytes` does not say this: it is a multiple of 32,256 that
    grows with the number of operations, is the same for one leaf of any size, and is 0
    for a base that puts as much on the chip. So the program is read. A temporary is an
    array that an operation leaves in HBM and the program does not return. What it does
    return lies in the donated arguments.
    """
    by_name = {o.name: o for o in program}
    returned, waiting = set(), [o.name for o in program if o.root]
    while waiting:
        operation = by_name[waiting.pop()]
        returned.add(operation.name)
        if operation.code in VIEWS:
            waiting += operation.operands
    hbm = chip = 0
    for operation in program:
        if operation.code == "get-tuple-element":
            counts = by_name[operation.operands[0]].code not in FREE
        else:  # the elements of a tuple count at their get-tuple-element
            counts = operation.code not in FREE and not operation.is_tuple
        for size, _, space in operation.results if counts else []:
            hbm += size * (space == 0 and operation.name not in returned)
            chip += size * (space == 1)
    return hbm, chip


def tool(name: str) -> str | None:
    """Returns the path of a CUDA program that pip installed."""
    packages = sysconfig.get_paths()["purelib"]
    return next(iter(glob.glob(f"{packages}/nvidia/*/bin/{name}")), None)


def output(name: str, *arguments: Any) -> str:
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed: {done.stderr}")
    return done.stdout + done.stderr


def gpu_code(lowered: Any, written: int | None) -> tuple[int, float | None]:
    """Returns the most registers per thread, and the instructions per element.

    The instructions are known if the tree is one leaf. `written` is the number of bytes
    that a step writes per element of it. The kernel that stores the most bytes per
    thread works on (those bytes / `written`) elements per thread. What follows the last
    EXIT is padding.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Compiled once more, since writing PTX takes time.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": False}
        lowered.compile(compiler_options=options)
        codes = [path.read_text() for path in Path(folder).glob("*.ptx")]
        codes = [code for code in codes if code.strip()]
        header = re.compile(r"^\.(?:version|target|address_size).*$", re.MULTILINE)
        code = "".join([codes[0], *(header.sub("", code) for code in codes[1:])])
        source, binary = Path(folder, "all.ptx"), Path(folder, "all.cubin")
        source.write_text(code)
        log = output("ptxas", "-arch=sm_90a", "-v", source, "-o", binary)
        registers = max(int(n) for n in re.findall(r"Used (\d+) registers", log))
        if written is None:
            return registers, None
        language = PTX
        if tool("nvdisasm"):
            language, code = SASS, output("nvdisasm", binary)
    kernel, instruction, store, last = language
    sizes = []
    for body in re.split(kernel, code)[1:]:
        instructions = re.findall(instruction, body, re.MULTILINE)
        stores = re.findall(store, "\n".join(instructions))
        size = sum(int(width or 1) * int(bits or 32) // 8 for width, bits in stores)
        if size:
            sizes.append((size, len(instructions) - instructions[::-1].index(last)))
    # If two store equally much, the longer one: the other makes the words of the step.
    stored, longest = max(sizes)
    return registers, longest * written / stored


def figures(
    target: str,
    devices: list[Any],
    mesh: str,
    tx: Any,
    shapes: timing.Shapes,
    dtype: str = "float32",
    repeats: int = 1,
) -> Figures:
    """Compiles a step and returns its figures."""
    lowered, compiled, seconds = compile_step(devices, mesh, tx, shapes, dtype, repeats)
    text, stats = compiled.as_text(), compiled.memory_analysis()
    program, on_tpu = operations(text), target in TPU
    work = working(program)
    hbm, chip = memory(program)
    cycles = [int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', text)]
    registers = instructions = None
    if not on_tpu:
        results = [x for x in jax.tree.leaves(lowered.out_info) if x.shape == shapes[0]]
        written = sum(x.dtype.itemsize for x in results) if len(shapes) == 1 else None
        registers, instructions = gpu_code(lowered, written)
    return Figures(
        # On a TPU an operation without cycles is not a kernel.
        kernels=len(cycles) if on_tpu else len(work),
        scalar_operations=sum(map(is_scalar, work)) if on_tpu else 0,
        cycles=sum(cycles) if on_tpu else None,
        instructions=instructions,
        registers=registers,
        temporaries=hbm if on_tpu else stats.temp_size_in_bytes,
        on_chip=chip if on_tpu else None,
        temp_size=stats.temp_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
        collectives=len(COLLECTIVE.findall(text)),
        compile_seconds=seconds,
    )


def machine(target: str) -> str:
    """Returns where the steps were compiled, and by which compiler."""
    compiler = "libtpu" if target in TPU else "nvidia-cuda-nvcc"
    versions = timing.machine() | {compiler: importlib.metadata.version(compiler)}
    if target not in TPU:
        versions["instructions"] = "SASS" if tool("nvdisasm") else "PTX"
    del versions["device"], versions["platform"]  # the target was not there
    return ", ".join(f"{name} {value}" for name, value in versions.items())
