"""What each design of the draw that was tried costs, and how random it is.

    python benchmarks/studies/draw_designs.py

It times ResNet-34 in float32 and writes benchmarks/results/<device>-draw_designs.json.
The last column is the largest of 1,216 correlations between masks, in standard
deviations. They are correlations between elements at 64 distances, between leaves whose
hashes share their first word, and between leaves that overlap on the Weyl sequence.
Independent masks give about 3.6; far more than that means structure.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrd_optax

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/
import timing
from step_cost import bernoulli_dropout

Draw = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

ODD = 0xED5AD4BB  # as in the draw of the library
# The distances on the Weyl sequence between two leaves that overlap.
OVERLAPS = (1, 2, 3, 64, 4096, 2**14, 2**15, 2**16, 2**17, 2**18)


def multiply_xorshift(rounds: int) -> Draw:
    """Returns a draw of `rounds` rounds over a Weyl sequence; the library has three."""

    def draw(index, first, second):
        step = index * np.uint32(ODD)
        x = step + first
        for number in range(rounds):
            x = (x ^ (x >> np.uint32(16))) * np.uint32(ODD)
            if number == 0:
                x = x + (step ^ second)
        return x

    return draw


def threefry(index, first, second):
    """The cipher behind jax.random, with 20 rounds for every element."""
    keys = (first, second, first ^ second ^ np.uint32(0x1BD11BDA))
    x, y = index + keys[0], jnp.zeros_like(index) + keys[1]
    for block in range(5):
        for shift in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x = x + y
            y = (y << np.uint32(shift)) | (y >> np.uint32(32 - shift))
            y = x ^ y
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x


def row_major(shape: tuple[int, ...]) -> jax.Array:
    """Returns the index of each element, from one iota per dimension."""
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for dim in reversed(range(len(shape))):
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
        index, stride = index + position * np.uint32(stride), stride * shape[dim]
    return index


def reshaped(shape: tuple[int, ...]) -> jax.Array:
    """Returns the index of each element, from one flat iota. It cannot be sharded."""
    return jax.lax.iota(jnp.uint32, int(np.prod(shape))).reshape(shape)


def dropout(
    draw: Draw, index: Callable = row_major, key_per_leaf: bool = False
) -> optax.GradientTransformation:
    """Learning Rate Dropout at 0.5 with another draw."""
    number = np.arange(1, 2000, dtype=np.uint32)[:, None]
    numbers = number * np.uint32([0x1E3779B1, 0x85EBCA6B])

    def init(params):
        return jnp.zeros(2, jnp.uint32)

    def update(updates, words, params=None):
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        leaves, treedef = jax.tree.flatten(updates)
        count = len(leaves) + 1 if key_per_leaf else 2
        fold = jax.vmap(lambda i: jax.random.fold_in(key, i))
        drawn = jax.random.key_data(fold(np.arange(count, dtype=np.uint32)))

        @jax.jit
        def masked(leaf, pair, number):
            pair = pair if key_per_leaf else pair + number
            hashed = draw(index(leaf.shape), pair[0], pair[1])
            return jnp.where(hashed >> np.uint32(8) < np.uint32(2**23), leaf, 0)

        kept = [
            masked(leaf, drawn[i + 1 if key_per_leaf else 1], numbers[i])
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(treedef, kept), drawn[0]

    return optax.GradientTransformation(init, update)


def largest_correlation(draw: Draw, keys: int = 16, size: int = 2**22) -> float:
    """Returns the largest |z| between masks that should be independent."""
    powers = (9, 12, 13, 14, 15, 16, 17, 18)
    lags = (*range(1, 41), *(2**i + j for i in powers for j in (-1, 0, 1)))
    index = np.arange(size + max(lags), dtype=np.uint32)

    @jax.jit
    def signs(first, second):
        return jnp.where(draw(index, first, second) >> np.uint32(31) == 0, 1.0, -1.0)

    rng = np.random.default_rng(1)
    largest = 0.0
    for _ in range(keys):
        first, *seconds = rng.integers(2**32, size=4, dtype=np.uint32)
        here, *others = (np.asarray(signs(first, second)) for second in seconds)
        for lag in lags:
            largest = max(largest, abs(here[lag : lag + size] @ here[:size]))
        for other in others:
            largest = max(largest, abs(here[:size] @ other[:size]))
        for lag in OVERLAPS:
            moved = np.uint32((int(first) + lag * ODD) % 2**32)
            other = np.asarray(signs(moved, seconds[0]))
            largest = max(largest, abs(here[lag : lag + size] @ other[:size]))
    return float(largest / np.sqrt(size))


DESIGNS = {
    "shipped": (lrd_optax.learning_rate_dropout(0.5, key=0), multiply_xorshift(3)),
    "one round": (dropout(multiply_xorshift(1)), multiply_xorshift(1)),
    "two rounds": (dropout(multiply_xorshift(2)), multiply_xorshift(2)),
    "three rounds": (dropout(multiply_xorshift(3)), multiply_xorshift(3)),
    "three rounds, key a leaf": (
        dropout(multiply_xorshift(3), key_per_leaf=True),
        multiply_xorshift(3),
    ),
    "three rounds, flat iota": (
        dropout(multiply_xorshift(3), reshaped),
        multiply_xorshift(3),
    ),
    "threefry an element": (dropout(threefry), threefry),
    "bernoulli a leaf": (bernoulli_dropout(0.5), None),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    rows = []
    print(timing.HEADER + "  max |z|")
    quality = {
        name: largest_correlation(draw) if draw else None
        for name, (_, draw) in DESIGNS.items()
    }
    for optimizer in ("Adam", "SGD+momentum"):
        costs = timing.measure(
            timing.OPTIMIZERS[optimizer](),
            {name: tx for name, (tx, _) in DESIGNS.items()},
            timing.TREES["ResNet-34"],
            rounds=args.rounds,
            slow=("bernoulli a leaf",),
        )
        for name, cost in costs.items():
            z = quality.get(name)
            print(
                timing.row(f"{optimizer}, {name}", cost)
                + (f"{z:9.1f}" if z else "        -"),
                flush=True,
            )
            rows.append(
                {"optimizer": optimizer, "design": name, "largest_z": z}
                | cost._asdict()
            )
    print("written:", timing.write("draw_designs", {"rows": rows}))


if __name__ == "__main__":
    main()
