"""Records updates of Rollfast's Magma, for the tests of our Magma to compare with.

    pip install rollfast==1.3.0  # needs Python 3.12 or later
    python benchmarks/record_magma.py

Public versions of Magma differ where the paper says nothing. By its source, this one
does as follows. The base is the optimizer that Magma changes.

- First score: 0.5 in each leaf. A step first mixes in a tenth of sigmoid(cosine / tau),
  then uses the score. It does the first in skipped leaves too.
- Momentum: the base's own, with this step's gradient in it, without bias correction.
  There is none for a base without momentum.
- Cosine: the dot product over max(|gradient| * |momentum|, 1e-12), in float32. It is 0
  if either is zero, and too near 0 if the product of the norms is below 1e-12.
- Leaves: each leaf is a block, vectors too.
- Decay: part of the base's update, so it is scaled and skipped with it.
- Randomness: a key in the state, split at each step and then for each leaf.
- Scale: a kept update is multiplied by its score. Nothing is divided by p.

The gradients do not depend on the parameters, which stay where they are, so a skipped
update changes no later step. Rollfast has no SGD with Magma: the case "sgd" gives its
inner function an average of the gradients, which is ours. Writes tests/data/magma.json.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import records
from rollfast.optim.adam import adamw
from rollfast.optim.magma import apply_magma_internal

PATH = Path(__file__).parent.parent / "tests" / "data" / "magma.json"
PACKAGES = ("rollfast", "jax", "optax", "numpy")
SHAPES = {"wide": (3, 4), "tall": (4, 2), "vector": (5,)}
SIGNS = (1, 1, 1, -1, 1, 0, -1, -1, -1, -1, 1, 1)  # 0: all gradients are zero
VECTOR_STARTS = 2  # the vector's gradient and momentum are zero before this step

Tree = dict[str, Any]


class State(NamedTuple):
    magma_s: Tree
    average: Any
    key: jax.Array


def sgd(
    learning_rate: float, decay: float, magma_p: float, magma_tau: float, key: jax.Array
) -> optax.GradientTransformation:
    """Returns SGD with Magma, on m = decay * m + (1 - decay) * gradient from m = 0."""
    average = optax.ema(decay, debias=False)

    def init(params: Tree) -> tuple[State]:
        scores = dict.fromkeys(params, jnp.float32(0.5))
        return (State(scores, average.init(params), key),)

    def update(gradient: Tree, states: tuple[State], params: Any) -> Any:
        scores, average_state, key = states[0]
        key, step_key = jax.random.split(key)
        momentum, average_state = average.update(gradient, average_state)
        updates = jax.tree.map(lambda g: -learning_rate * g, gradient)
        updates, scores = apply_magma_internal(
            gradient, momentum, updates, scores, step_key, magma_p, magma_tau
        )
        return updates, (State(scores, average_state, key),)

    return optax.GradientTransformation(init, update)


def adam_with_magma(**options: Any) -> optax.GradientTransformation:
    return adamw(**options, use_magma=True)


Make = Callable[..., optax.GradientTransformation]
ADAM = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
ADAMW = {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.1}
MAGMA = {"magma_p": 0.5, "magma_tau": 2.0}
CASES: dict[str, tuple[Make, int, float, dict[str, float]]] = {
    # name: function, seed, factor of the gradients, options
    "adam": (adam_with_magma, 0, 1.0, ADAM | MAGMA),
    "adamw": (adam_with_magma, 1, 1.0, ADAMW | {"magma_p": 0.7, "magma_tau": 0.5}),
    "adam, tiny gradients": (adam_with_magma, 2, 2.0**-24, ADAM | MAGMA),
    "sgd": (sgd, 3, 1.0, {"learning_rate": 0.1, "decay": 0.9} | MAGMA),
}


def random_trees() -> tuple[Tree, list[Tree]]:
    """Returns parameters and each step's gradients, in multiples of 1/64."""
    rng = np.random.default_rng(0)

    def draw() -> Tree:
        return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}

    def on_grid(tree: Tree) -> Tree:
        return {
            name: (np.round(64 * value) / 64 + 0.0).astype(np.float32)  # -0.0 to 0.0
            for name, value in tree.items()
        }

    params, mean = draw(), draw()
    gradients = []
    for step, sign in enumerate(SIGNS):
        noise = draw()
        gradient = {name: sign * (mean[name] + 0.7 * noise[name]) for name in SHAPES}
        if step < VECTOR_STARTS:
            gradient["vector"] *= 0
        gradients.append(on_grid(gradient))
    return on_grid(params), gradients


def run(
    optimizer: optax.GradientTransformation, params: Tree, gradients: list[Tree]
) -> tuple[list[Tree], list[Tree]]:
    """Returns the updates and the scores of each step."""
    state, updates, scores = optimizer.init(params), [], []
    for gradient in gradients:
        update, state = optimizer.update(
            jax.tree.map(jnp.asarray, gradient), state, params
        )
        updates.append(update)
        scores.append(state[0].magma_s)
    return updates, scores


def by_leaf(steps: list[Tree]) -> Tree:
    """Returns each leaf's values in lists, to the nine digits that fix a float32."""

    def listed(value: Any) -> Any:
        if isinstance(value, list):
            return [listed(item) for item in value]
        return float(f"{value:.9g}") + 0.0 if isinstance(value, float) else value

    return {
        name: [listed(np.asarray(s[name]).tolist()) for s in steps] for name in SHAPES
    }


def record(
    make: Make,
    seed: int,
    factor: float,
    options: dict[str, float],
    params: Tree,
    gradients: list[Tree],
) -> dict[str, Any]:
    optimizer = make(**options, key=jax.random.PRNGKey(seed))
    scaled = [jax.tree.map(lambda g: np.float32(factor) * g, g) for g in gradients]
    updates, scores = run(optimizer, params, scaled)
    # The masks depend on the key alone. With gradients of one, only they give zeros.
    ones = [jax.tree.map(np.ones_like, gradient) for gradient in gradients]
    shown, _ = run(optimizer, jax.tree.map(np.zeros_like, params), ones)
    kept = [jax.tree.map(lambda u: bool(np.all(u != 0)), step) for step in shown]
    for name in SHAPES:
        for update, keep in zip(updates, kept, strict=True):
            assert keep[name] or not np.any(update[name])
        assert len({step[name] for step in kept}) == 2
    return {
        "options": options,
        "factor": factor,
        "kept": by_leaf(kept),
        "scores": by_leaf(scores),
        "updates": by_leaf(updates),
    }


def main() -> None:
    params, gradients = random_trees()
    recorded = {name: record(*case, params, gradients) for name, case in CASES.items()}
    versions = {name: version(name) for name in PACKAGES}
    text = records.dumps(
        {
            "versions": versions,
            "params": {name: value.tolist() for name, value in params.items()},
            "gradients": by_leaf(gradients),
            "recorded": recorded,
        },
        levels=3,
    )
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text + "\n")
    print(f"rollfast {versions['rollfast']}: {len(recorded)} cases, {len(SIGNS)} steps")
    print(f"{len(text)} characters: {PATH}")


if __name__ == "__main__":
    main()
