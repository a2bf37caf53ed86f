"""What each regime of the plan trains: data, network, start and length."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from . import data, models, starts
from .plan import Arm
from .training import Hyper, Outcome, Task, make_program

CLASSES = 10
GROWTH = 4  # copies of a unit, a channel or an expert


class Spec(NamedTuple):
    """All that a compiled program depends on, besides the optimizer and the arm."""

    network: tuple[Any, ...]  # the name of the network and its sizes
    images: int  # training images of a run
    valid: int
    batch: int
    passes: int
    cosine: bool = True
    probabilities: bool = False  # test by log-probabilities, for ensembles
    steps: int = 0  # without passes: so many steps with all images


class Pool(NamedTuple):
    """What all runs share, as arrays on the device."""

    train_x: Any
    test_x: Any
    test_y: Any


class Draw(NamedTuple):
    """The images and labels of one seed."""

    train: Any
    train_y: Any
    valid: Any
    valid_y: Any


class Setup(NamedTuple):
    """A regime on a task, ready to be trained."""

    spec: Any
    task: Task
    pool: Any
    draw: Callable[[list[int]], Any]  # seeds -> data, [seeds, ...]
    start: Callable[..., Any]  # kind, noise, seeds, own -> parameters, [seeds, ...]


def make_network(network: tuple[Any, ...], rngs: nnx.Rngs) -> nnx.Module:
    name, *sizes = network
    match name:
        case "MLP":
            return models.MLP(*sizes, rngs=rngs)
        case "MLP, tanh":
            return models.MLP(*sizes, rngs=rngs, tanh=True)
        case "CNN":
            return models.CNN(*sizes, rngs=rngs)
        case "residual MLP":
            return models.ResidualMLP(*sizes, rngs=rngs)
        case "mixture":
            return models.Mixture(*sizes, rngs=rngs)
        case "transformer":
            return models.Transformer(*sizes, rngs=rngs)
    raise ValueError(f"no network is called {name}")


def keys_of(seeds: list[int], use: int) -> jax.Array:
    """Returns a key for each seed. `use` tells what for, so that none is used twice."""
    return many_keys(7919 * np.array(seeds) + use)


many_keys = jax.jit(jax.vmap(jax.random.key))


@functools.cache
def graph_of(network: tuple[Any, ...]) -> Any:
    return nnx.split(nnx.eval_shape(lambda: make_network(network, nnx.Rngs(0))))[0]


@functools.cache
def usual_start(network: tuple[Any, ...]) -> Callable[[jax.Array], Any]:
    def start(key):
        return nnx.state(make_network(network, nnx.Rngs(key)), nnx.Param)

    return jax.jit(jax.vmap(start))


def logits_of(network, params, x, drop=None) -> jax.Array:
    return nnx.merge(graph_of(network), params)(x, drop)


def measure(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Accuracy in points and mean loss; a diverged run scores as a uniform guess."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    finite = jnp.isfinite(losses.mean())
    accuracy = 100 * (logits.argmax(-1) == labels).mean()
    return {
        "accuracy": jnp.where(finite, accuracy, 100 / CLASSES),
        "NLL": jnp.where(finite, losses.mean(), math.log(CLASSES)),
    }


@functools.cache
def image_task(spec: Spec) -> Task:
    def loss(params, pool, draw, batch, drop):
        logits = logits_of(spec.network, params, pool.train_x[draw.train[batch]], drop)
        labels = draw.train_y[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def check(params, pool, draw):
        logits = logits_of(spec.network, params, pool.train_x[draw.valid])
        return measure(logits, draw.valid_y)

    def test(params, pool, draw):
        logits = logits_of(spec.network, params, pool.test_x)
        if not spec.probabilities:
            return measure(logits, pool.test_y)
        valid = logits_of(spec.network, params, pool.train_x[draw.valid])
        return {"test": nnx.log_softmax(logits), "valid": nnx.log_softmax(valid)}

    def orders(key):
        if spec.steps:  # all images in every batch
            return jnp.tile(jnp.arange(spec.images), (spec.steps // 10, 1))
        used = spec.images // spec.batch * spec.batch
        shuffled = jax.random.permutation(key, spec.images)
        return shuffled[:used].reshape(-1, spec.batch)

    if spec.steps:
        return Task(loss, check, test, orders, 10, spec.steps // 10, spec.cosine)
    steps = spec.images // spec.batch
    return Task(loss, check, test, orders, spec.passes, steps, spec.cosine)


def draw_images(images: data.Images, spec: Spec, seeds: list[int], wrong: float = 0):
    """Draws the images of each seed, and makes a part of the training labels wrong."""
    draws = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        chosen = random.permutation(len(images.train_x))[: spec.images + spec.valid]
        train, valid = np.split(chosen, [spec.images])
        labels = images.train_y[train]
        false = (labels + random.integers(1, CLASSES, len(labels))) % CLASSES
        labels = np.where(random.random(len(labels)) < wrong, false, labels)
        draws.append(Draw(train, labels, valid, images.train_y[valid]))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *draws)


def plain_hyper(runs: int, rate: float) -> Hyper:
    one = np.ones(runs, np.float32)
    return Hyper(rate * one, one, 0 * one, np.inf * one, 0 * one)


def pretrained(spec: Spec, pool: Pool, draw: Draw, seeds: list[int]) -> Any:
    """Trains a network for each seed with Adam at 0.01."""
    params = usual_start(spec.network)(keys_of(seeds, 1))
    train = program(spec, "Adam", "plain")
    keys = keys_of(seeds, 2), keys_of(seeds, 3)
    return train(params, draw, plain_hyper(len(seeds), 0.01), *keys, pool).params


@functools.cache
def program(spec: Spec, optimizer: str, family: str) -> Callable[..., Outcome]:
    task = text_task(spec) if isinstance(spec, TextSpec) else image_task(spec)
    return make_program(task, optimizer, family)


def not_grown(narrow, usual, start, key):
    return usual


def starter(
    network: tuple[Any, ...],
    trained: Callable[[tuple[int, ...]], Any] | None,
    grow: Callable[..., Any],
    noisy: str,
) -> Callable[..., Any]:
    """Returns `start` of a setup: `grow` makes it from what is trained by seed.

    `noisy` is the pattern of the names of the kernels that noise is added to. A start
    takes `own` numbers in the place of the seeds for what is not trained before.
    """

    @functools.cache
    def grown(name, is_noisy):
        def one(narrow, usual, key, noise):
            params = grow(narrow, usual, name, key)
            return starts.add_noise(params, noise, key, noisy) if is_noisy else params

        return jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))

    def start(name, noise, seeds, own):
        usual = usual_start(network)(keys_of(own, 4))
        if name == "scratch":
            return usual
        narrow = trained(tuple(seeds)) if trained else None
        kind = name if name in ("uneven", "router") else "given"
        return grown(kind, noise > 0)(narrow, usual, keys_of(seeds, 5), noise)

    return start


def image_setup(
    images: data.Images,
    spec: Spec,
    wrong: float = 0,
    narrow: Spec | None = None,
    narrow_images: data.Images | None = None,
    grow: Callable[..., Any] = not_grown,
    noisy: str = "kernel",
) -> Setup:
    """`narrow` is trained first; `grow` makes the start from it and the usual start."""
    pool = Pool(*map(jnp.asarray, (images.train_x, images.test_x, images.test_y)))

    def draw(seeds):
        return draw_images(images, spec, seeds, wrong)

    @functools.cache
    def narrow_params(seeds):
        source = images if narrow_images is None else narrow_images
        draw = draw_images(source, narrow, list(seeds))
        other = pool._replace(train_x=jnp.asarray(source.train_x))
        return pretrained(narrow, other, draw, list(seeds))

    trained = None if narrow is None else narrow_params
    start = starter(spec.network, trained, grow, noisy)
    return Setup(spec, image_task(spec), pool, draw, start)


def grow_units(narrow, usual, start, key):
    shares = key if start == "uneven" else None
    return starts.copied_units(narrow, usual, shares)


def grow_layers(narrow, usual, start, key):
    return starts.copied_layers(narrow, usual)


def grow_experts(narrow, usual, start, key):
    router = key if start == "router" else None
    return starts.copied_experts(narrow, usual, router)


def new_head(narrow, usual, start, key):
    """Takes all but the head from the trained network."""
    body = starts.leaves_by_name(narrow)
    return starts.fill(
        usual,
        lambda name, _: (
            starts.leaves_by_name(usual)[name] if "head" in name else body[name]
        ),
    )


class TextSpec(NamedTuple):
    letters: int
    width: int
    hidden: int
    blocks: int
    context: int
    batch: int
    segments: int
    steps_per_segment: int

    @property
    def network(self) -> tuple[Any, ...]:
        sizes = self.width, self.hidden, self.blocks
        return "transformer", self.letters, self.context, *sizes


class TextPool(NamedTuple):
    train: Any
    valid: Any
    test: Any


@functools.cache
def text_task(spec: TextSpec) -> Task:
    def bits(params, windows, drop=None):
        logits = logits_of(spec.network, params, windows[:, :-1], drop)
        labels = windows[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean() / math.log(2)

    def windows(codes, begins):
        return codes[begins[:, None] + jnp.arange(spec.context + 1)]

    def loss(params, pool, draw, batch, drop):
        return bits(params, windows(pool.train, batch), drop)

    def measure(params, codes):
        # One window after the other, so that each character but the first counts once.
        begins = jnp.arange(0, len(codes) - spec.context, spec.context)
        value = bits(params, windows(codes, begins))
        worst = math.log2(spec.letters)
        return {"bits": jnp.where(jnp.isfinite(value), value, worst)}

    def orders(key):
        shape = spec.steps_per_segment, spec.batch
        last = 1000 * data.TEXT_BLOCKS["train"] - spec.context - 1
        return jax.random.randint(key, shape, 0, last)

    return Task(
        loss,
        lambda params, pool, draw: measure(params, pool.valid),
        lambda params, pool, draw: measure(params, pool.test),
        orders,
        spec.segments,
        spec.steps_per_segment,
    )


def text_setup(
    text: data.Text, spec: TextSpec, narrow: TextSpec | None = None
) -> Setup:
    """`narrow` is trained first, then its units are copied."""
    pool = TextPool(*map(jnp.asarray, text[:3]))

    @functools.cache
    def narrow_params(seeds):
        return pretrained(narrow, pool, np.array(seeds), list(seeds))

    if narrow is None:
        start = starter(spec.network, None, not_grown, "kernel")
    else:
        start = starter(spec.network, narrow_params, grow_units, "up|down")
    return Setup(spec, text_task(spec), pool, np.array, start)


class Sizes(NamedTuple):
    """How large the regimes are on a task."""

    # The training and validation images of a run, its batches and passes.
    images: int = 900
    valid: int = 300
    batch: int = 100
    passes: int = 30
    small: tuple[int, ...] = (32, 32)  # widths of hidden layers
    large: tuple[int, ...] = (64, 64)
    # What is trained before it grows, or before it is tuned for other classes.
    narrow: tuple[int, ...] = (8,)
    wide: tuple[int, ...] = (32,)
    expert: int = 8
    narrow_passes: int = 20
    body_images: int = 400
    body_valid: int = 100
    # Steps with all images.
    full_images: int = 500
    full_steps: int = 300
    ensemble_images: int = 300
    ensemble_steps: int = 150
    # Few samples, large batches, wrong labels.
    few: int = 100
    more: int = 300
    few_batch: int = 50
    few_passes: int = 100
    more_passes: int = 50
    large_batch: int = 450
    large_passes: int = 30
    wrong_passes: int = 60
    short_passes: int = 4


SIZES = {
    "digits": Sizes(),
    "Fashion": Sizes(
        images=2000,
        valid=1000,
        passes=10,
        large=(64,),
        narrow=(16,),
        wide=(64,),
        narrow_passes=10,
        body_valid=333,
        large_batch=1000,
        large_passes=20,
        wrong_passes=30,
        short_passes=2,
    ),
    "CIFAR-10": Sizes(images=2000, valid=1000, passes=10),
}
# So that most regimes share their programs, which take long to compile.
QUICK = Sizes(
    *(100, 100, 50, 2),
    *((4, 4), (4, 4)),
    *((1, 1), (4, 4), 2, 2, 100, 100),
    *(100, 10, 100, 10),
    *(100, 100, 50, 2, 2, 50, 2, 2),
)


def base_spec(images: data.Images, sizes: Sizes) -> Spec:
    network = "MLP", images.train_x.shape[-1], sizes.small
    return Spec(network, sizes.images, sizes.valid, sizes.batch, sizes.passes)


def few_spec(images: data.Images, sizes: Sizes) -> Spec:
    spec = base_spec(images, sizes)
    return spec._replace(
        images=sizes.few, batch=sizes.few_batch, passes=sizes.few_passes
    )


def large_spec(images: data.Images, sizes: Sizes) -> Spec:
    spec = base_spec(images, sizes)
    return spec._replace(network=(*spec.network[:2], sizes.large))


def full_spec(images: data.Images, sizes: Sizes) -> Spec:
    spec = base_spec(images, sizes)._replace(batch=0, passes=0)
    return spec._replace(images=sizes.full_images, steps=sizes.full_steps)


def grown(images, sizes: Sizes, before, after, grow, noisy: str, passes=0) -> Setup:
    spec = base_spec(images, sizes)
    return image_setup(
        images,
        spec._replace(network=after, passes=passes or sizes.passes),
        narrow=spec._replace(network=before, passes=sizes.narrow_passes),
        grow=grow,
        noisy=noisy,
    )


def copied_units(images, sizes: Sizes) -> Setup:
    name, inputs, _ = base_spec(images, sizes).network
    networks = (name, inputs, sizes.narrow), (name, inputs, sizes.wide)
    return grown(images, sizes, *networks, grow_units, "layers")


def short_growth(images, sizes: Sizes) -> Setup:
    return copied_units(images, sizes._replace(passes=sizes.short_passes))


def copied_channels(images, sizes: Sizes) -> Setup:
    networks = ("CNN", (8, 8, 1), 2), ("CNN", (8, 8, 1), 2 * GROWTH)
    noisy, passes = "first|second", sizes.narrow_passes
    return grown(images, sizes, *networks, grow_units, noisy, passes)


def copied_layers(images, sizes: Sizes) -> Setup:
    before = "residual MLP", images.train_x.shape[-1], sizes.small[0], 2
    after = (*before[:3], 4)
    return grown(images, sizes, before, after, grow_layers, "first|second")


def copied_experts(images, sizes: Sizes) -> Setup:
    before = "mixture", images.train_x.shape[-1], sizes.small[0], sizes.expert, 1
    after = (*before[:4], GROWTH)
    return grown(images, sizes, before, after, grow_experts, "first|second")


def equal_weights(images, sizes: Sizes) -> Setup:
    def grow(narrow, usual, start, key):
        return starts.equal_weights(usual)

    return image_setup(images, base_spec(images, sizes), grow=grow)


def near_a_saddle(images, sizes: Sizes) -> Setup:
    def grow(narrow, usual, start, key):
        return starts.small_weights(usual)

    spec = base_spec(images, sizes)
    widths = (*sizes.small, sizes.small[0])
    spec = spec._replace(network=("MLP, tanh", spec.network[1], widths))
    return image_setup(images, spec, grow=grow)


def good_start(images, sizes: Sizes) -> Setup:
    return image_setup(images, large_spec(images, sizes))


def full_batch(images, sizes: Sizes) -> Setup:
    return image_setup(images, full_spec(images, sizes))


def large_batch(images, sizes: Sizes) -> Setup:
    spec = base_spec(images, sizes)
    spec = spec._replace(batch=sizes.large_batch, passes=sizes.large_passes)
    return image_setup(images, spec)


def wrong_labels(part: float) -> Callable[[data.Images, Sizes], Setup]:
    def setup(images, sizes):
        spec = large_spec(images, sizes)._replace(passes=sizes.wrong_passes)
        return image_setup(images, spec, wrong=part)

    return setup


def few_samples(images, sizes: Sizes) -> Setup:
    return image_setup(images, few_spec(images, sizes))


def more_samples(images, sizes: Sizes) -> Setup:
    spec = few_spec(images, sizes)
    return image_setup(
        images, spec._replace(images=sizes.more, passes=sizes.more_passes)
    )


def fine_tuning(images, sizes: Sizes, probabilities=False) -> Setup:
    body = base_spec(images, sizes)._replace(
        images=sizes.body_images, valid=sizes.body_valid, passes=sizes.narrow_passes
    )
    return image_setup(
        images.only(range(5, CLASSES)),
        few_spec(images, sizes)._replace(probabilities=probabilities),
        narrow=body,
        narrow_images=images.only(range(5)),
        grow=new_head,
    )


fine_tuned_ensembles = functools.partial(fine_tuning, probabilities=True)


def stable_rates(images, sizes: Sizes) -> Setup:
    spec = base_spec(images, sizes)
    return image_setup(images, spec._replace(cosine=False, passes=sizes.narrow_passes))


def full_batch_ensembles(images, sizes: Sizes) -> Setup:
    spec = full_spec(images, sizes)._replace(probabilities=True)
    size = {"images": sizes.ensemble_images, "steps": sizes.ensemble_steps}
    return image_setup(images, spec._replace(**size))


def photographs(images, sizes: Sizes) -> Setup:
    spec = base_spec(images, sizes)
    return image_setup(images, spec._replace(network=("CNN", (16, 16, 3), 8)))


IMAGE_REGIMES: dict[str, Callable[[data.Images, Sizes], Setup]] = {
    "copied units": copied_units,
    "copied channels": copied_channels,
    "copied layers": copied_layers,
    "copied experts": copied_experts,
    "equal weights": equal_weights,
    "near a saddle": near_a_saddle,
    "good start": good_start,
    "full batch": full_batch,
    "large batch": large_batch,
    "20 % wrong labels": wrong_labels(0.2),
    "40 % wrong labels": wrong_labels(0.4),
    "100 samples": few_samples,
    "300 samples": more_samples,
    "fine-tuning": fine_tuning,
    "stable rates": stable_rates,
    "ensembles, full batch": full_batch_ensembles,
    "ensembles, fine-tuning": fine_tuned_ensembles,
    "photographs": photographs,
    # of exploration.py
    "short growth": short_growth,
    "ensembles again, full batch": full_batch_ensembles,
    "ensembles again, fine-tuning": fine_tuned_ensembles,
}


def build(regime: str, task: str, source: Any, quick: bool = False) -> Setup:
    """Returns the regime of the plan on data.Images or data.Text."""
    if regime in IMAGE_REGIMES:
        return IMAGE_REGIMES[regime](source, QUICK if quick else SIZES[task])
    width, blocks, steps = (16, 1, 5) if quick else (32, 2, 100)
    spec = TextSpec(source.letters, width, 4 * width, blocks, 32, 16, 3, steps)
    if regime == "grown transformer":
        short = spec._replace(segments=2)
        return text_setup(source, short, spec._replace(hidden=width))
    return text_setup(source, spec)


def hyper_of(arm: Arm, rates: np.ndarray, steps: int) -> Hyper:
    """`begin` below 1 is a part of the run."""
    one = np.ones(len(rates), np.float32)
    begin = arm.begin if arm.begin >= 1 or arm.begin == 0 else round(arm.begin * steps)
    numbers = arm.keep_prob, begin, begin + arm.steps, arm.dropout
    return Hyper(*(x * one for x in (rates, *numbers)))
