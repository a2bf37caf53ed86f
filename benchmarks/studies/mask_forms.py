"""The forms of the mask that were tried, and what XLA makes of each.

    python benchmarks/studies/mask_forms.py cpu     # or v5e, h100: see accelerators.py

A form has four parts: how the key changes from step to step (its threading), how the
number of a leaf enters, how its elements are counted, and a hash. A step for ResNet-34
in float32 is compiled with each form, and on a CPU it is timed. Writes
benchmarks/results/<target>-mask_forms.json.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/
import accelerators  # first: it sets what JAX reads when it is imported
import compiled
import jax
import jax.numpy as jnp
import numpy as np
import optax
import records
import timing
from draw_designs import multiply_xorshift, row_major
from draw_designs import reshaped as flat

import lrd_optax

LIMIT = np.uint32(2**31)
WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint32)


def threefry(words):
    """Two calls of fold_in, as in the first form of the library."""
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    following, now = (jax.random.key_data(jax.random.fold_in(key, i)) for i in (0, 1))
    return following, now[0], now[1]


def feistel(words):
    """The rounds of the library, as straight-line code on every platform."""
    left, right = words[0], words[1]
    for constant in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344):
        x = right + np.uint32(constant)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        left, right = right, left ^ x ^ (x >> np.uint32(16))
    return words + WEYL, left, right


def as_scalar(first, second, number, leaf):
    return first + number[0], second


def as_array(first, second, number, leaf):
    return (first + number)[0], second


def in_both_words(first, second, number, leaf):
    both = jnp.stack([first, second]) + number
    return both[0], both[1]


def behind_a_barrier(first, second, number, leaf):
    words = jnp.stack([first, second])
    words, number = jax.lax.optimization_barrier((words, number))
    return words[0] + number[0], words[1]


def from_a_table(first, second, number, leaf):
    """One array with a row per leaf; each kernel takes its own row."""
    leaves = np.arange(1000, dtype=np.uint32)[:, None] * number[None] + number
    table = jnp.stack([first, second]) + leaves
    return table[leaf, 0], table[leaf, 1]


def nowhere(first, second, number, leaf):
    """All leaves draw alike. It is wrong; what it saves is the cost of the number."""
    return first, second


def horner(shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
    for dim in range(1, len(shape)):
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
        index = index * np.uint32(shape[dim]) + position
    return index


def before(index, first, second):
    """Three multipliers, three shifts, and the second word added in the middle."""
    start = index * np.uint32(0x9E3779B1) + first
    x = start ^ (start >> np.uint32(17))
    x = x * np.uint32(0xED5AD4BB)
    x = x ^ (x >> np.uint32(11))
    x = x + (start ^ second)
    x = x * np.uint32(0xAC4C1B51)
    x = x ^ (x >> np.uint32(15))
    return x * np.uint32(0x31848BAB)


def no_hash(index, first, second):
    """Neighbors move together. It is wrong; what it saves is the cost of the hash."""
    return index + first


three, two = multiply_xorshift(3), multiply_xorshift(2)


class Form(NamedTuple):
    threading: Callable
    number: Callable
    index: Callable
    draw: Callable | None  # None: one decision for the whole tree


FORMS = {
    "before: arrays": Form(threefry, in_both_words, row_major, before),
    "scalar number": Form(threefry, as_scalar, row_major, before),
    "scalar number, Horner": Form(threefry, as_scalar, horner, before),
    "behind a barrier": Form(threefry, behind_a_barrier, row_major, before),
    "a table for the tree": Form(feistel, from_a_table, horner, three),
    "own threading": Form(feistel, in_both_words, row_major, before),
    "own threading, hash": Form(feistel, in_both_words, row_major, three),
    "one word, array, Horner": Form(feistel, as_array, horner, three),
    "one word, array, flat": Form(feistel, as_array, flat, three),
    "one word, scalar, Horner": Form(feistel, as_scalar, horner, three),
    "one word, scalar, flat": Form(feistel, as_scalar, flat, three),
    "two rounds, array, Horner": Form(feistel, as_array, horner, two),
    "two rounds, scalar, flat": Form(feistel, as_scalar, flat, two),
    "no hash, array, Horner (wrong)": Form(feistel, as_array, horner, no_hash),
    "no hash, scalar, flat (wrong)": Form(feistel, as_scalar, flat, no_hash),
    "no number (wrong)": Form(feistel, nowhere, horner, three),
    "select only (wrong)": Form(feistel, nowhere, horner, None),
}


def dropout(form: Form) -> optax.GradientTransformation:
    """Learning Rate Dropout at 0.5 in another form."""

    @functools.partial(jax.jit, static_argnames=("shape", "leaf"))
    def mask(first, second, number, shape, leaf):
        if form.draw is None:
            return jnp.broadcast_to(first < LIMIT, shape)
        words = form.number(first, second, number, leaf)
        return form.draw(form.index(shape), *words) < LIMIT

    def update(updates, words, params=None):
        following, first, second = form.threading(words)
        leaves, treedef = jax.tree.flatten(updates)
        kept = []
        for n, leaf in enumerate(leaves):
            number = (n + 1) * 0x9E3779B1 % 2**32
            number = np.array([number, number ^ 1], np.uint32)
            row = n if form.number is from_a_table else None
            chosen = mask(first, second, number, leaf.shape, row)
            kept.append(jax.lax.select(chosen, leaf, jnp.zeros_like(leaf)))
        return jax.tree.unflatten(treedef, kept), following

    return optax.GradientTransformation(lambda _: jnp.zeros(2, jnp.uint32), update)


OPTIMIZERS = ("Adam", "SGD+momentum")
TREE = timing.TREES["ResNet-34"]


def forms() -> dict[str, optax.GradientTransformation]:
    shipped = lrd_optax.learning_rate_dropout(0.5, key=0)
    return {"shipped": shipped} | {name: dropout(FORMS[name]) for name in FORMS}


def table(target: str) -> list[dict]:
    """Returns what the compiler of an accelerator says about a step with each form."""
    devices, rows = compiled.devices(target), []
    print(f"{target}. {compiled.NOTE}\n{accelerators.HEADER}", flush=True)
    for optimizer in OPTIMIZERS:
        base_tx = timing.OPTIMIZERS[optimizer]()
        base = compiled.figures(target, devices, "one", base_tx, TREE)  # pays start-up
        for name, form in {"base": optax.identity(), **forms()}.items():
            tx = optax.chain(base_tx, form)
            cost = compiled.figures(target, devices, "one", tx, TREE, repeats=2)
            base = cost if name == "base" else base
            title = f"{optimizer}, {name}"
            print(accelerators.row(title, cost, base, TREE), flush=True)
            rows.append({"optimizer": optimizer, "form": name} | cost._asdict())
    return rows


def timed(rounds: int) -> list[dict]:
    """Returns what a step with each form costs on this machine."""
    rows = []
    print(timing.HEADER)
    for optimizer in (*OPTIMIZERS, "SGD"):
        base = timing.OPTIMIZERS[optimizer]()
        for name, cost in timing.measure(base, forms(), TREE, rounds=rounds).items():
            print(timing.row(f"{optimizer}, {name}", cost), flush=True)
            rows.append({"optimizer": optimizer, "form": name} | cost._asdict())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=["cpu", *compiled.TPU, "h100"])
    parser.add_argument("--rounds", type=int, default=9, help="of timing, on cpu")
    args = parser.parse_args()
    if args.target == "cpu":
        print("written:", timing.write("mask_forms", {"rows": timed(args.rounds)}))
        return
    rows = table(args.target)
    path = timing.RESULTS / f"{args.target}-mask_forms.json"
    machine = compiled.machine(args.target)
    results = {"note": compiled.NOTE, "machine": machine, "rows": rows}
    path.write_text(records.dumps(results) + "\n")
    print("written:", path)


if __name__ == "__main__":
    main()
