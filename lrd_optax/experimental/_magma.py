"""Magma: masks of tensors, and steps scaled by how gradient and momentum agree."""

from __future__ import annotations  # so that help shows short names

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrd_optax import _checks, _prefixes
from lrd_optax._checks import Number
from lrd_optax._dropout import LearningRateDropoutState, learning_rate_dropout
from lrd_optax._keys import KeyLike
from lrd_optax._prefixes import Granularity, KeepProb


class MagmaState(NamedTuple):
    """State of `magma`.

    Attributes:
      inner: the state of the optimizer.
      dropout: the state of the masks, whose ``count`` is the number of updates so far.
      momentum: the average of the gradients of the eligible leaves; None if the
        optimizer has a first moment, which is used instead.
      alignment: the score :math:`s` of each block of the eligible leaves, in float32
        (float64 for float64 leaves), of the shape of the axes in `granularity`.
    """

    inner: optax.OptState
    dropout: LearningRateDropoutState
    momentum: optax.Updates | None
    alignment: optax.Updates


def magma(
    optimizer: optax.GradientTransformation,
    keep_prob: KeepProb = 0.5,
    *,
    key: KeyLike,
    temperature: Number = 2.0,
    alignment_decay: Number = 0.9,
    momentum_decay: Number = 0.9,
    initial_alignment: Number | str = 0.5,
    granularity: Granularity = "tensor",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Masks blocks of an optimizer's update, and scales them by a score of agreement.

    A block is a set of elements that share one decision, by default a tensor. For each
    block, let :math:`g_t` be its gradient, :math:`\mu_t` its momentum (after its update
    with :math:`g_t`), and :math:`\Delta_t` the update of the optimizer. The score
    :math:`s_t` says how well the first two agree:

    .. math::

      \tilde s_t &= \mathrm{sigmoid}(\cos(\mu_t, g_t) / \tau) \\
      s_t &= \beta\, s_{t-1} + (1 - \beta)\, \tilde s_t \\
      \theta_{t+1} &= \theta_t + s_t\, m_t\, \Delta_t,
      \qquad m_t \sim \mathrm{Bernoulli}(p)

    Nothing is divided by :math:`p`, so the mean step is :math:`p\, s_t` times that of
    the optimizer: 0.19 to 0.31 with the defaults. Compare it with an optimizer whose
    rate is tuned as well. The evidence for the method is open: its authors report gains
    for language models and none for CNNs, and what others report is mixed.

    Leaves that are not eligible get the update of the optimizer as it is. Weight decay
    inside of `optimizer`, as in :func:`optax.adamw`, is part of :math:`\Delta_t`, so it
    is masked and scaled too. To decay every weight at every step, put it outside:
    ``optax.chain(magma(optax.scale_by_adam(), key=0), optax.add_decayed_weights(0.1),
    optax.scale_by_learning_rate(1e-3))``.

    Args:
      optimizer: a gradient transformation. Momentum is the first moment in its state:
        the field ``mu``, if there is one and it has the structure of the parameters
        (``scale_by_adam`` and its relatives), or else the trace with which it begins
        (``optax.sgd(rate, momentum)``). If it has neither, as plain SGD and RMSprop, an
        average of the gradients is kept: :math:`\mu_t = d \mu_{t-1} + (1 - d) g_t`,
        from 0, in the dtype of the parameters.
      keep_prob: the probability :math:`p` that a block is updated: all that
        `learning_rate_dropout` takes.
      key: the source of the masks: all that `learning_rate_dropout` takes. The masks
        are those of ``optax.masked(learning_rate_dropout(keep_prob, key=key,
        granularity=granularity), mask)``, and so the same on all devices and processes.
      temperature: :math:`\tau`, above 0. Scores lie between sigmoid(-1 / tau) and
        sigmoid(1 / tau).
      alignment_decay: :math:`\beta`, from 0 to 1.
      momentum_decay: :math:`d`, from 0 to 1. It is used only if the optimizer has no
        first moment.
      initial_alignment: the score :math:`s_0` before the first update, from 0 to 1, or
        ``"first"``: then :math:`s_1 = \tilde s_1`.
      granularity: what a block is: all that `learning_rate_dropout` takes. For layers
        that are stacked along a first axis, ``(0,)`` makes each a block of its own.
      mask: which leaves are eligible: a tree prefix of booleans, or a function that
        takes the parameters or updates and returns one, as :func:`optax.masked` takes.
        None: leaves of two or more axes. That includes embeddings, output layers
        and the biases of Flax attention, which the paper leaves out. (This is not the
        random mask.)

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state :class:`MagmaState`.
      A cosine with a zero vector, or with one whose norm is not finite, is 0. (The
      square of a norm has the dtype of the score, so in float32 a norm is 0 below about
      1e-19, and not finite above 1e19.) Under ``jit`` on a mesh the cosines are those
      of whole blocks, which is a sum over the devices. Inside ``shard_map`` an array
      that varies is scored and masked for each shard.

      Implementations differ where the paper says nothing, or differ from it:

      =================  =========  ==========  ==============  ======================
      implementation     first s    momentum    decay           eligible
      =================  =========  ==========  ==============  ======================
      `magma`            argument   after       by place        `mask`
      the paper          not said   after       not said        attention, MLP weights
      magma-optimizer    1          after       inside          all but a list
      pytorch_optimizer  1          after       inside          all but a list
      rollfast           0.5        after       inside          all
      dion, PR 27        0.5        before      outside         Muon's matrices
      Marin, grug        "first"    after       not said        two or more axes
      =================  =========  ==========  ==============  ======================

      Two of them refuse to run in several processes, where their masks would differ.
      In Marin each layer of a stack is a block. In rollfast the cosine is too small
      where the product of the norms is below 1e-12.

    Raises:
      ValueError: if an argument is outside of its range.
      TypeError: if an argument has a wrong type.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from lrd_optax import experimental
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
      >>> optimizer = experimental.magma(optax.sgd(0.1), key=3)
      >>> state = optimizer.init(params)
      >>> updates, state = jax.jit(optimizer.update)(params, state, params)
      >>> print(updates["w"][0], updates["b"])
      [-0.05122459 -0.05122459 -0.05122459] [-0.1 -0.1 -0.1]
      >>> print(state.alignment["w"])  # 0.9 * 0.5 + 0.1 * sigmoid(1 / 2)
      0.5122459

    References:
      Joo et al, `arXiv 2602.15322 <https://arxiv.org/abs/2602.15322>`_, 2026
    """
    dropout = learning_rate_dropout(keep_prob, key=key, granularity=granularity)
    if not hasattr(optimizer, "update"):
        raise TypeError(
            "optimizer must be a gradient transformation, as optax.adam(1e-3) is, "
            f"got {_checks.shown(optimizer)}"
        )
    optimizer = optax.with_extra_args_support(optimizer)
    tau = _checks.number("temperature", temperature, above=0)
    decay = _checks.number("alignment_decay", alignment_decay, least=0, most=1)
    slow = _checks.number("momentum_decay", momentum_decay, least=0, most=1)
    first_is_sample, start = _start(initial_alignment)

    def init_fn(params: optax.Params) -> MagmaState:
        eligible = _choose(_flags(mask, params), params)
        inner, momentum = optimizer.init(params), None
        if _first_moment(inner, params) is None:
            momentum = jax.tree.map(jnp.zeros_like, eligible)
        leaves, structure = jax.tree.flatten(eligible)
        axes = _prefixes.axes_per_leaf(granularity, eligible)
        scores = [_scores_like(*pair, start) for pair in zip(leaves, axes, strict=True)]
        alignment = jax.tree.unflatten(structure, scores)
        return MagmaState(inner, dropout.init(eligible), momentum, alignment)

    def update_fn(
        updates: optax.Updates, state: MagmaState, params: Any = None, **extra: Any
    ) -> tuple[optax.Updates, MagmaState]:
        if not hasattr(state, "alignment"):
            got = type(state).__name__
            raise TypeError(
                f"state must be the MagmaState that init returns, got {got}"
            )
        flags = _flags(mask, updates)
        gradients = _choose(flags, updates)
        proposed, inner = optimizer.update(updates, state.inner, params, **extra)
        momentum = state.momentum
        if momentum is None:
            moment = _choose(flags, _first_moment(inner, updates))
        else:
            moment = momentum = jax.tree.map(
                lambda m, g: _average(m, g, slow), momentum, gradients
            )
        changes, structure = jax.tree.flatten(_choose(flags, proposed))
        axes = _prefixes.axes_per_leaf(granularity, gradients)
        trees = map(jax.tree.leaves, (state.alignment, moment, gradients))
        is_first = state.dropout.count == 0
        beta = jnp.where(is_first, 0.0, decay) if first_is_sample else decay
        scores = [
            _average(score, _sample(mu, g, along, tau), beta)
            for score, mu, g, along in zip(*trees, axes, strict=True)
        ]
        scaled = map(_scale, changes, scores, axes)
        scaled_tree = jax.tree.unflatten(structure, scaled)
        kept, keys = dropout.update(scaled_tree, state.dropout)
        alignment = jax.tree.unflatten(structure, scores)
        return _merge(kept, proposed), MagmaState(inner, keys, momentum, alignment)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _start(initial_alignment: Any) -> tuple[bool, Any]:
    """Returns whether the first score is the first sample, and the score before it."""
    name = "initial_alignment"
    if not isinstance(initial_alignment, str):
        return False, _checks.number(name, initial_alignment, least=0, most=1)
    if initial_alignment != "first":
        rule = f'{name} must be "first" or a number from 0 to 1'
        raise ValueError(f"{rule}, got {initial_alignment!r}")
    return True, 0.0


def _flags(mask: Any, tree: Any) -> list[bool]:
    """Returns, for each leaf, whether it is eligible."""
    if mask is None:
        return [jnp.ndim(leaf) >= 2 for leaf in jax.tree.leaves(tree)]
    values, structure = jax.tree.flatten(_prefixes.resolve("mask", mask, tree))
    for value in values:
        if not isinstance(value, (bool, np.bool_)):
            got = _checks.shown(value)
            raise TypeError(f"mask must hold True or False for each leaf, got {got}")
    return [
        bool(values[n]) for n in _prefixes.numbers_per_leaf("mask", structure, tree)
    ]


def _choose(flags: list[bool], tree: Any) -> Any:
    """Returns the tree without the leaves that are not eligible."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, flags, strict=True)
    # Arrays of a dtype of their own, also where a leaf is a number or its type is weak.
    chosen = [
        jax.lax.convert_element_type(leaf, jnp.result_type(leaf))
        if flag
        else optax.MaskedNode()
        for leaf, flag in pairs
    ]
    return jax.tree.unflatten(structure, chosen)


def _merge(chosen: Any, tree: Any) -> Any:
    """Returns the tree with the leaves that are in `chosen` replaced."""

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(
        lambda new, old: old if is_masked(new) else new, chosen, tree, is_leaf=is_masked
    )


def _first_moment(state: Any, tree: Any) -> Any:
    """Returns the first moment in the state of an optimizer, None if there is none."""

    def describe(tree: Any) -> Any:
        return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]

    wanted = describe(tree)
    found = [moment for _, moment in optax.tree.get_all_with_path(state, "mu")]
    found = [moment for moment in found if describe(moment) == wanted]
    if len(found) == 1:
        return found[0]
    # A trace behind other parts of a chain may be one of steps, with another sign.
    while type(state) is tuple and state:
        state = state[0]
    trace = getattr(state, "trace", None)
    return trace if describe(trace) == wanted else None


def _sample(
    moment: jax.Array, gradient: jax.Array, axes: tuple[int, ...], temperature: Any
) -> jax.Array:
    """Returns the new part of the score of each block."""
    cosine = _cosine(moment, gradient, axes)
    return jax.nn.sigmoid(cosine / jnp.asarray(temperature, cosine.dtype))


def _cosine(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the cosine of each block, 0 if it is not defined."""
    dtype = _wide(a, b)
    product, *squares = _sums(a.astype(dtype), b.astype(dtype), _others(a, axes))
    # False for NaN too. What is not defined has no part in a gradient either.
    defined = [(square > 0) & (square < jnp.inf) for square in squares]
    norms = [
        jnp.sqrt(jnp.where(*pair, 1)) for pair in zip(defined, squares, strict=True)
    ]
    return jnp.where(defined[0] & defined[1], product / norms[0] / norms[1], 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sums(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    """Returns the sums of a b, a a and b b over `axes`."""

    def in_one(a: jax.Array, b: jax.Array) -> list[jax.Array]:
        # Three sums would read the arrays three times on a CPU, and store them first.
        terms = _products(a, b)
        zeros = [np.zeros((), term.dtype) for term in terms]
        return jax.lax.reduce(terms, zeros, lambda x, y: list(map(jnp.add, x, y)), axes)

    # On a TPU three sums are one kernel, and this reduction is slow.
    apart = functools.partial(_three_sums, axes)
    return jax.lax.platform_dependent(a, b, tpu=apart, default=in_one)


@_sums.defjvp
def _sums_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    # JAX differentiates single sums only.
    tangent = jax.jvp(functools.partial(_three_sums, axes), primals, tangents)[1]
    return _sums(*primals, axes), tangent


def _three_sums(axes: tuple[int, ...], a: jax.Array, b: jax.Array) -> list[jax.Array]:
    return [term.sum(axes) for term in _products(a, b)]


def _products(a: jax.Array, b: jax.Array) -> list[jax.Array]:
    return [jnp.real(x * y.conj()) for x, y in ((a, b), (a, a), (b, b))]


def _scores_like(leaf: jax.Array, axes: tuple[int, ...], value: Any) -> jax.Array:
    """Returns a score for each block of a leaf, on the devices of the leaf."""
    dtype = jnp.finfo(_wide(leaf)).dtype  # real, also for a complex leaf
    # A sum, since it keeps the sharding of the leaf. XLA knows that it is 0: it would
    # compute the cosine while it compiles.
    zeros = jnp.zeros_like(leaf, dtype=dtype).sum(_others(leaf, axes))
    return zeros + jnp.asarray(value, dtype)


def _average(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
    """Returns decay * old + (1 - decay) * new, in the dtype of `old`."""
    dtype = _wide(old)
    kept, added = jnp.asarray(decay, dtype), jnp.asarray(1 - decay, dtype)
    return (kept * old.astype(dtype) + added * new.astype(dtype)).astype(old.dtype)


def _scale(update: jax.Array, score: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the update times the score of each block, in the dtype of the update."""
    factor = jnp.expand_dims(score, _others(update, axes)).astype(_wide(update))
    return (update.astype(_wide(update)) * factor).astype(update.dtype)


def _others(array: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes of a block, along which one score serves."""
    return tuple(axis for axis in range(array.ndim) if axis not in axes)


def _wide(*arrays: jax.Array) -> Any:
    """Returns the dtype to compute in: at least 32 bits."""

    def widen(dtype: Any) -> Any:
        is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
        return dtype if is_wide else jnp.float32

    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*[widen(array.dtype) for array in arrays])
