r"""Learning Rate Dropout (LRD) in several processes, which all draw the same masks.

    python examples/multi_process.py --num-processes 1
    python examples/multi_process.py --num-processes 2    # the same line of masks

This starts that many processes on this machine, with four CPU devices in all. On a
cluster, start it once per host. The devices may be of any kind, but their number must
divide 96:

    python examples/multi_process.py --num-processes 8 --process-id 3 \
        --coordinator first-host:1234

The batch is split over all devices, and so are parameters, optimizer state and masks
(fully sharded data parallelism). A mask depends on the key and on the indices in the
global array, not on which process holds which shard. So nothing is sent for it.
"""

import hashlib
import os
import socket
import subprocess
import sys
import time

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.multi_process()

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import lrd_optax

STEPS, BATCH, LOCAL_DEVICES = 20, 96, 4

# jax.distributed.initialize() has to come before the first array. With an int key the
# optimizer makes no array before its init, so it can be built anywhere, as here.
optimizer = optax.chain(
    optax.adam(1e-2), lrd_optax.learning_rate_dropout(keep_prob=0.5, key=0)
)


def initial_state() -> tuple[dict[str, jax.Array], optax.OptState]:
    key1, key2 = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(key1, (64, 128)) / 8,
        "b1": jnp.zeros(128),
        "w2": jax.random.normal(key2, (128, 10)) / 11,
        "b2": jnp.zeros(10),
    }
    return params, optimizer.init(params)


def loss_of(params, images, labels):
    hidden = jnp.tanh(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(state, images, labels):
    """Returns the next state, the loss, and which parameters have moved."""
    params, opt_state = state
    loss, grads = jax.value_and_grad(loss_of)(params, images, labels)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    # With tanh, and no pixel that is always 0, no gradient is 0. So an update of 0
    # has been dropped.
    masks = jax.tree.map(lambda update: update != 0, updates)
    return (optax.apply_updates(params, updates), opt_state), loss, masks


def train(mesh: Mesh) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """Returns the parameters, the masks of all steps, and the last loss."""
    split = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding(leaf):
        """Splits the first axis, if the number of devices divides it."""
        return split if leaf.ndim and leaf.shape[0] % mesh.size == 0 else replicated

    def spread(array):
        return jax.make_array_from_callback(array.shape, split, lambda i: array[i])

    shardings = jax.tree.map(sharding, jax.eval_shape(initial_state))
    state = jax.jit(initial_state, out_shardings=shardings)()
    step = jax.jit(train_step, out_shardings=(shardings, replicated, shardings[0]))
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16 - 0.5).astype(np.float32), y.astype(np.int32)
    if jax.process_index() == 0:
        print("The first step is compiled, which takes seconds.", file=sys.stderr)
    masks = []
    for number in range(STEPS):
        # Every process draws the whole batch and keeps its own part.
        batch = np.random.default_rng(number).integers(len(x), size=BATCH)
        state, loss, mask = step(state, spread(x[batch]), spread(y[batch]))
        masks.append(multihost_utils.process_allgather(mask, tiled=True))
    params = multihost_utils.process_allgather(state[0], tiled=True)
    return params, jax.tree.map(lambda *steps: np.stack(steps), *masks), float(loss)


def start_processes(number: int) -> None:
    """Runs this script in `number` processes, and stops them all if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    devices = str(LOCAL_DEVICES // number)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": devices}
    command = [sys.executable, *sys.argv, "--coordinator", coordinator, "--process-id"]
    # In groups of their own, where Ctrl-C does not reach them: this process stops them.
    processes: list[subprocess.Popen] = []
    options.end_on_ctrl_c(lambda: [p.kill() for p in processes])
    try:
        for i in range(number):
            started = [*command, str(i)]
            processes.append(
                subprocess.Popen(started, env=environment, process_group=0)
            )
        while any(p.poll() is None for p in processes):
            if any(p.poll() for p in processes):
                break  # the others would wait for it
            time.sleep(0.1)
        failed = [i for i, p in enumerate(processes) if p.poll()]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    if failed:
        sys.exit(f"process {failed[0]} failed, and the others were stopped")


def main() -> None:
    args = options.multi_process()
    if args.process_id is None:
        start_processes(args.num_processes)
        return
    jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    devices = jax.device_count()
    if BATCH % devices:
        sys.exit(f"a batch of {BATCH} cannot be split over {devices} devices")
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    params, masks, loss = train(mesh)
    digest = hashlib.sha256(b"".join(mask.tobytes() for mask in masks.values()))
    if jax.process_index() == 0:
        print(f"loss after {STEPS} steps: {loss:.4f}")
        if args.out:
            named = {f"masks_{name}": mask for name, mask in masks.items()}
            options.save(args.out, lambda path: np.savez(path, **params, **named))
    print(f"masks: {digest.hexdigest()} (process {jax.process_index()})")


if __name__ == "__main__":
    main()
