r"""Learning Rate Dropout (LRD) on CIFAR-10, in the set-up of the paper, at full size.

    python examples/cifar10.py --quick          # a small ResNet, 2 minutes on 2 cores
    python examples/cifar10.py --output results/cifar10-lrd    # for an accelerator
    python examples/cifar10.py --output results/cifar10-dense --keep-prob 1
    python examples/curves.py results/cifar10-lrd results/cifar10-dense    # compares

A run trains one network: a ResNet-34, for 200 epochs, with batches of 128 images that
are cropped and flipped at random. The learning rate is divided by 10 after half of the
steps, and again after three quarters. The gradient of an L2 penalty, 5e-4 x parameter,
is added to the gradient before the optimizer gets it. LRD comes behind the optimizer.
`--keep-prob 1` is training without LRD.

Nothing is downloaded: `--data` says where the images are (see images.py). All devices
are used. Each takes a part of every batch, and BatchNorm has the mean and variance of
the whole batch. On several hosts, start it once per host, as multi_process.py, with an
`--output` on a disk that they share.

The step is a function of one tree, the state, so that this can be donated, lie on
several devices, and be saved. To use LRD in a program of your own, `make_optimizer` is
all you need.

A run that was stopped or killed goes on with the same command. On the same machine it
ends like one that was left alone, bit for bit, since a step depends on nothing but the
state and its number: the order of the images follows from the seed and the epoch. (On a
GPU this may need XLA_FLAGS=--xla_gpu_deterministic_ops=true.)
"""

import functools
import sys
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.cifar10()

import curves
import images
import jax
import jax.numpy as jnp
import numpy as np
import optax
import resnet
import runs
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import lrd_optax

PAD = 4  # pixels around an image, of which a crop may show up to 4
L2 = 5e-4
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgdm": lambda rate: optax.sgd(rate, momentum=0.9),
    # PyTorch adds eps to the root, Optax by default to what is under it.
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.99, eps_in_sqrt=False),
    "adam": optax.adam,
    "amsgrad": optax.amsgrad,
    "radam": optax.radam,
}

State = dict[str, Any]  # trees of arrays: all that a step changes


class Channels(NamedTuple):
    """Mean and standard deviation of each channel, as bytes from 0 to 255."""

    mean: np.ndarray
    deviation: np.ndarray


def channels_of(train_images: np.ndarray) -> Channels:
    levels, stats = np.arange(256), []
    for channel in range(3):
        # Sums of whole numbers, so they are exact.
        counts = np.bincount(train_images[..., channel].ravel(), minlength=256)
        mean = counts @ levels / counts.sum()
        stats.append((mean, np.sqrt(counts @ levels**2 / counts.sum() - mean**2)))
    return Channels(*np.array(stats, np.float32).T.reshape(2, 1, 1, 1, 3))


def normalize(pixels: jax.Array, channels: Channels) -> jax.Array:
    # A channel that is the same everywhere becomes 0, not 0 / 0.
    scale = np.where(channels.deviation > 0, channels.deviation, 1)
    return (pixels.astype(jnp.float32) - channels.mean) / scale


def augment(key: jax.Array, pixels: jax.Array) -> jax.Array:
    """Shifts each image by up to 4 pixels each way, and flips half of them."""
    corner_key, flip_key = jax.random.split(key)
    number, height, width, _ = pixels.shape
    corners = jax.random.randint(corner_key, (number, 2), 0, 2 * PAD + 1)
    flips = jax.random.bernoulli(flip_key, 0.5, (number, 1, 1, 1))
    padded = jnp.pad(pixels, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, 3))

    crops = jax.vmap(crop)(padded, corners)
    return jnp.where(flips, crops[:, :, ::-1], crops)


def make_schedule(rate: float, steps: int) -> optax.Schedule:
    """Divides the rate by 10 after half of the steps and after three quarters."""
    drops = {-(-steps // 2): 0.1, -(-3 * steps // 4): 0.1}
    return optax.piecewise_constant_schedule(rate, drops)


def make_optimizer(
    name: str,
    rate: optax.ScalarOrSchedule,
    keep_prob: float,
    key: Any,
    unbiased: bool = False,
) -> optax.GradientTransformation:
    dropout = lrd_optax.learning_rate_dropout(keep_prob, key=key, unbiased=unbiased)
    # In front, the penalty goes through the moments, as weight_decay in PyTorch does.
    return optax.chain(optax.add_decayed_weights(L2), OPTIMIZERS[name](rate), dropout)


def replicate(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts the whole array on each device, also on those of other processes."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(array.shape, everywhere, lambda i: array[i])


def make_sums() -> State:
    return {"loss": jnp.zeros([]), "correct": jnp.zeros([], jnp.int32)}


def make_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> State:
    _, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return {
        "params": params,
        "batch_stats": batch_stats,
        "opt_state": optimizer.init(params),
        "step": jnp.zeros([], jnp.int32),
        "sums": make_sums(),  # since the last report
    }


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    channels: Channels,
    key: jax.Array,
    mesh: Mesh,
) -> Any:
    """Returns a jitted function: state, images, labels, indices -> the next state.

    `images` are all of the training set, as bytes. `indices` are those of the batch.
    The state that it takes is used up. Crops and flips are drawn from `key` and the
    number of the step.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))

    def loss_of(params, batch_stats, x, labels):
        # A copy, since Flax lets no function change variables made outside of it.
        batch_stats = jax.tree.map(lambda leaf: leaf, batch_stats)
        model = nnx.merge(graph, params, batch_stats)
        logits = model(x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = (logits.argmax(-1) == labels).sum()
        return losses.mean(), (nnx.state(model, nnx.BatchStat), correct)

    def train_step(state, images, labels, indices):
        indices = jax.lax.with_sharding_constraint(indices, split)
        pixels = augment(jax.random.fold_in(key, state["step"]), images[indices])
        arguments = state["batch_stats"], normalize(pixels, channels), labels[indices]
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (batch_stats, correct)), grads = gradient_of(state["params"], *arguments)
        updates, opt_state = optimizer.update(
            grads, state["opt_state"], state["params"]
        )
        sums = {"loss": loss, "correct": correct}
        return {
            "params": optax.apply_updates(state["params"], updates),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "sums": jax.tree.map(jnp.add, state["sums"], sums),
        }

    return jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)


def make_count_correct(
    graph: nnx.GraphDef, channels: Channels, batch: int, mesh: Mesh
) -> Any:
    """Returns a jitted function: state, images, labels -> how many are recognized."""
    split = NamedSharding(mesh, PartitionSpec("data"))

    def count_correct(state, images, labels):
        size = len(images)

        def count(indices):
            model = nnx.merge(graph, state["params"], state["batch_stats"])
            model.eval()
            indices = jax.lax.with_sharding_constraint(indices, split)
            # The last batch is filled with the last image, which counts only once.
            shown = jnp.minimum(indices, size - 1)
            predictions = model(normalize(images[shown], channels)).argmax(-1)
            return ((predictions == labels[shown]) & (indices < size)).sum()

        batches = -(-size // batch)
        return jax.lax.map(count, jnp.arange(batches * batch).reshape(-1, batch)).sum()

    return jax.jit(count_correct, out_shardings=NamedSharding(mesh, PartitionSpec()))


@functools.lru_cache(maxsize=1)
def order_of(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def indices_of(step: int, batch: int, size: int, seed: int) -> np.ndarray:
    """Returns which images step number `step` (from 1) trains on.

    Each epoch has an order of its own. What does not fill a batch is left out of it.
    """
    epoch, place = divmod(step - 1, size // batch)
    return order_of(seed, epoch, size)[place * batch :][:batch]


class Programs(NamedTuple):
    """The jitted functions of a run, and its learning rates."""

    new_state: Callable[[], State]
    new_sums: Callable[[], State]
    train_step: Callable[..., State]
    count_correct: Callable[..., jax.Array]
    schedule: optax.Schedule


def make_programs(args: Any, channels: Channels, classes: int, epoch: int, mesh: Mesh):
    """Returns the Programs; `epoch` is the number of steps in an epoch."""
    dtype = jnp.bfloat16 if args.bfloat16 else jnp.float32
    # Three keys: for the first parameters, the masks, and the crops and flips.
    keys = jax.random.split(jax.random.key(args.seed), 3)

    def build(key):
        rngs = nnx.Rngs(key)
        return resnet.ResNet(args.depth, args.width, classes, dtype, rngs=rngs)

    graph, _ = nnx.split(nnx.eval_shape(build, keys[0]))
    schedule = make_schedule(args.learning_rate, args.epochs * epoch)
    optimizer = make_optimizer(
        args.optimizer, schedule, args.keep_prob, keys[1], args.unbiased
    )
    everywhere = {"out_shardings": NamedSharding(mesh, PartitionSpec())}
    return Programs(
        jax.jit(lambda: make_state(build(keys[0]), optimizer), **everywhere),
        jax.jit(make_sums, **everywhere),
        make_train_step(graph, optimizer, channels, keys[2], mesh),
        make_count_correct(graph, channels, args.batch, mesh),
        schedule,
    )


def train(args: Any, data: images.Data, mesh: Mesh) -> tuple[State, list[runs.Record]]:
    size, batch = len(data.train_images), args.batch
    epoch = size // batch  # in steps
    channels = channels_of(data.train_images)
    programs = make_programs(args, channels, len(data.classes), epoch, mesh)
    train_set = [replicate(a, mesh) for a in (data.train_images, data.train_labels)]
    test_set = [replicate(a, mesh) for a in (data.test_images, data.test_labels)]

    def train_step(state, step):
        indices = indices_of(step, batch, size, args.seed)
        return programs.train_step(state, *train_set, indices)

    def report(state, step):
        sums, correct = state["sums"], programs.count_correct(state, *test_set)
        record = {
            "epoch": step // epoch,
            "learning_rate": round(float(programs.schedule(step - 1)), 9),
            "train_loss": float(sums["loss"]) / epoch,
            "train_error": 100 - 100 * int(sums["correct"]) / (epoch * batch),
            "test_error": 100 - 100 * int(correct) / len(data.test_labels),
        }
        return state | {"sums": programs.new_sums()}, record

    plan = runs.Plan(
        folder=args.output,
        config=config_of(args, data),
        steps=args.epochs * epoch,
        report_every=epoch,
        save_every=args.save_every or epoch,
    )

    def draw(records):
        curves.draw({str(args.output): records}, args.output / "curves.png")

    return runs.train(plan, programs.new_state(), train_step, report, draw)


def config_of(args: Any, data: images.Data) -> dict[str, Any]:
    """Returns all that decides the result."""
    names = ["optimizer", "learning_rate", "keep_prob", "unbiased", "epochs", "batch"]
    names += ["depth", "width", "bfloat16", "seed"]
    config = {name: getattr(args, name) for name in names}
    checksum = 0
    for array in data[:4]:
        checksum = zlib.crc32(array.tobytes(), checksum)
    return {"example": "cifar10.py"} | config | {"checksum_of_images": checksum}


def a_tenth(data: images.Data) -> images.Data:
    """Returns a tenth of the images, of all classes."""

    def choose(*arrays):
        chosen = np.random.default_rng(0).permutation(len(arrays[0]))
        return [array[chosen[: -(-len(chosen) // 10)]] for array in arrays]

    train_images, train_labels = choose(data.train_images, data.train_labels)
    test_images, test_labels = choose(data.test_images, data.test_labels)
    return data._replace(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


def load(args: Any) -> images.Data:
    print(f"reading {args.data}", file=sys.stderr)  # takes up to half a minute
    try:
        data = images.load(args.data)
    except ValueError as error:
        sys.exit(str(error))
    if args.quick:
        data = a_tenth(data)
    if len(data.train_images) < args.batch:
        rule = f"--batch must be at most {len(data.train_images)}"
        sys.exit(f"{rule}, the number of training images, got {args.batch}")
    epoch = len(data.train_images) // args.batch
    if args.epochs * epoch > options.MOST_STEPS:
        rule = f"--epochs must be at most {options.MOST_STEPS // epoch}"
        sys.exit(f"{rule} with {epoch} steps per epoch, got {args.epochs}")
    return data


def make_mesh(batch: int) -> Mesh:
    """Returns a mesh of all devices, which must divide the batch."""
    number = jax.device_count()
    if batch % number:
        rule = f"--batch must be a multiple of the number of devices, {number}"
        sys.exit(f"{rule}, got {batch}")
    return jax.make_mesh((number,), ("data",), axis_types=(AxisType.Auto,))


def main() -> None:
    args = options.cifar10()
    data = load(args)
    runs.start_processes(args)
    mesh = make_mesh(args.batch)
    if runs.is_first_process():
        tenth = "a tenth of " if args.quick else ""
        print(f"{tenth}{data.source}, on {runs.in_words(mesh)}", flush=True)
    train(args, data, mesh)
    if runs.is_first_process():
        print(f"Wrote {args.output}/curves.png and records.jsonl")


if __name__ == "__main__":
    main()
