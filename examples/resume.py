"""Training with Learning Rate Dropout (LRD) that resumes where it was killed.

    python examples/resume.py    # about 20 seconds; press Ctrl-C, or kill it, any time
    python examples/resume.py    # the same again: "resumed at step 420"

However often it is killed, it ends with the parameters of a run that was left alone,
bit for bit (on the same machine): compare the last lines. Use `--directory` to give
each run a folder of its own. This works for two reasons:

- Everything that decides a step is saved. The key of the masks is in the optimizer
  state, and the batch depends on nothing but the number of the step.
- Orbax writes a checkpoint in the background, under another name, and renames it when
  it is complete. So a checkpoint that a kill left half written is never read.
"""

import hashlib
import signal
import sys
import threading
from typing import Any

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.resume()

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from sklearn.datasets import load_digits

import lrd_optax

TRAIN_SIZE, BATCH = 1200, 400
stop = threading.Event()

model = nn.Sequential([nn.Dense(512), nn.relu, nn.Dense(10)])
optimizer = optax.chain(
    optax.adam(1e-3), lrd_optax.learning_rate_dropout(keep_prob=0.5, key=0)
)


def load_data() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def batch_of(step: int) -> np.ndarray:
    """Returns the indices of the images that step number `step` trains on."""
    return np.random.default_rng(step).integers(TRAIN_SIZE, size=BATCH)


@jax.jit
def initial_state() -> dict[str, Any]:
    params = model.init(jax.random.key(0), jnp.zeros((1, 64)))
    return {"params": params, "opt_state": optimizer.init(params)}


@jax.jit
def train_step(state, images, labels):
    def loss_of(params):
        logits = model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_of)(state["params"])
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state}, loss


def train(manager: ocp.CheckpointManager, steps: int, save_every: int) -> None:
    x, y = load_data()
    state, start = initial_state(), manager.latest_step() or 0
    if start:
        # The fresh state has the shapes, dtypes and shardings to restore to.
        state = manager.restore(start, args=ocp.args.StandardRestore(state))
    print("resumed" if start else "started", "at step", start, flush=True)
    print("The first step is compiled, which takes seconds.", file=sys.stderr)
    for step in range(start + 1, steps + 1):
        batch = batch_of(step)
        state, loss = train_step(state, x[batch], y[batch])
        if step % save_every == 0 or step == steps:
            manager.save(step, args=ocp.args.StandardSave(state))
            print(f"step {step}, loss {loss:.4f}", flush=True)
        if stop.is_set():
            raise KeyboardInterrupt
    manager.wait_until_finished()
    predictions = model.apply(state["params"], x[TRAIN_SIZE:]).argmax(-1)
    print(f"test accuracy {(predictions == y[TRAIN_SIZE:]).mean():.2%}")
    print("sha256 of the parameters", sha256(state["params"]))
    print("sha256 of the optimizer state", sha256(state["opt_state"]))


def sha256(tree: Any) -> str:
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def main() -> None:
    args = options.resume()
    keep = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    end_now = signal.getsignal(signal.SIGINT)
    try:
        with ocp.CheckpointManager(args.directory.absolute(), options=keep) as manager:
            if (manager.latest_step() or 0) > args.steps:
                saved = f"holds step {manager.latest_step()}, which is beyond --steps"
                sys.exit(f"{args.directory} {saved} {args.steps}")
            # Ctrl-C stops after a step: during a save, Orbax would log a traceback.
            options.on_ctrl_c(lambda *_: stop.set())
            train(manager, args.steps, args.save_every)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, end_now)
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
