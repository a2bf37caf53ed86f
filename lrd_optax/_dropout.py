"""Learning Rate Dropout as a gradient transformation."""

from __future__ import annotations  # so that help shows short names

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrd_optax import _checks, _keys, _masks, _meshes, _prefixes
from lrd_optax._checks import Steps
from lrd_optax._keys import KeyLike
from lrd_optax._prefixes import Granularity, KeepProb


class LearningRateDropoutState(NamedTuple):
    """State of `learning_rate_dropout`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      rng_key: two words, ``uint32[2]``. The next update draws its masks from them. They
        are replaced when a mask has been used for `hold_steps` updates.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax
    rng_key: jax.Array


def learning_rate_dropout(
    keep_prob: KeepProb = 0.5,
    *,
    key: KeyLike,
    unbiased: bool = False,
    granularity: Granularity = "element",
    hold_steps: Steps = 1,
    sampler: Literal["bernoulli", "cycle"] = "bernoulli",
) -> optax.GradientTransformation:
    r"""Keeps each element of the update with probability `keep_prob`; the rest is 0.

    At step :math:`t` the base optimizer proposes the update :math:`u_t`, computed
    from the full gradient. By default, a fresh mask with independent entries decides
    which elements of it are applied (`granularity`, `hold_steps` and `sampler` change
    that):

    .. math::

      M_t \sim \mathrm{Bernoulli}(p), \qquad
      \theta_{t+1} = \theta_t + M_t \odot u_t

    Place it last in the chain, after the optimizer, so that gradients and moments
    stay dense. Before the optimizer it would be gradient dropout. After
    :func:`optax.adamw` it drops the weight decay too. To decay every weight at every
    step, build the chain from its parts: ``scale_by_adam``, this transformation,
    ``add_decayed_weights``, ``scale_by_learning_rate``.

    The mean update is :math:`p\,u_t`, as in the paper. With `unbiased` it is
    :math:`u_t`: what is kept is divided by the probability that the mask really has,
    which is :math:`p` rounded up to a multiple of :math:`2^{-24}`.

    Args:
      keep_prob: the probability :math:`p` that an element is KEPT: a number in
        (0, 1], a schedule of the update count (from 0), or a float scalar array,
        which may be traced. Or a tree prefix of these, if parts of the tree differ:
        ``{"embed": 0.9, "layers": 0.5}`` (an ``nnx.State`` in an ``nnx.Optimizer``).
        All that can be called is a schedule, also a module of Equinox.
        With the number 1 the updates are returned bit for bit. Numbers are checked,
        including those that a schedule returns. The value of a JAX array is not
        checked: it is rounded to float32, nothing is kept at or below 0 (and at NaN),
        and everything is kept at or above 1. The mask has this probability to within
        2**-24.
      key: the source of the masks, required: an int seed, a typed key of any
        implementation (:func:`jax.random.key`), or a legacy ``uint32`` key
        (:func:`jax.random.PRNGKey`). It may be traced: ``vmap`` over keys trains an
        ensemble in which each member has its own masks. `init` copies the key and
        never consumes it. Two transformations with equal keys draw equal masks.
      unbiased: if True, kept elements are multiplied by ``1 / keep_prob``
        (computed in float32 for narrower dtypes).
      granularity: what one decision is for. ``"element"``: each element has its own.
        ``"row"``: all elements with one index of the next-to-last axis share one.
        ``"column"``: those with one index of the last axis. ``"tensor"``: a whole leaf.
        In general, a tuple of the axes along which decisions DIFFER: ``(-2,)`` is
        "row", ``(-1,)`` is "column" and so one for each output unit of a Flax kernel
        ``[in, out]``, ``()`` is "tensor", and ``(0, -1)`` is one for each column of
        each layer, if layers are stacked along axis 0. Axes that a leaf does not have
        are left out: a vector is one row, a scalar one element. Or a tree prefix of
        these, or a function that takes the updates and returns one.
      hold_steps: for how many updates a mask stays: a whole number, 1 or more. An
        array is not checked, and less than 1 is taken as 1.
      sampler: ``"bernoulli"``: decisions are independent from mask to mask.
        ``"cycle"``: they are drawn without replacement. `keep_prob` must be
        :math:`1/n`, and each element (row, ...) is kept by exactly one of the n masks
        of a cycle. It draws which one, anew for each cycle. Cycles are counted from
        update 0. If a schedule changes n, the cycle under way is cut. A `keep_prob`
        that is a JAX array is taken as 1/n, with 1 / `keep_prob` rounded to n.

    Returns:
      An :class:`optax.GradientTransformation` with state
      :class:`LearningRateDropoutState`. Updates may have any shapes, and any float or
      complex dtypes that can hold a zero. Dtypes and weak types are kept. A complex
      number is kept or dropped as a whole. Values are selected, not multiplied, so a
      dropped NaN becomes 0.

      A mask depends on the key, on the number of its leaf in the flattened tree, and
      on the indices in the global array. So it is the same under any sharding by
      ``jit``. (An array may have at most 2**32 slices of 2**32 elements, where a slice
      spans one or more of the last axes.) Inside ``shard_map`` each array is one
      shard. An array that varies over a manual mesh axis gets a different mask in
      every shard along that axis; a replicated array gets the same mask in all. JAX
      does not say along which of its own axes it varies, so every shard decides for
      itself: "tensor" means the shard, and "row" a row of the shard. With
      ``check_vma=False`` (and in ``pmap``) JAX does not know which arrays vary, and
      all shards draw the same masks unless their keys differ.

    Raises:
      ValueError: if a number `keep_prob` is outside of (0, 1], or not 1/n for a cycle,
        or `keep_prob` or `key` has a wrong shape, or another argument is none of those
        that are allowed. The update raises it if a schedule returns such a value, a
        tree prefix does not fit, or the state's key is not two words.
      TypeError: if an argument has a wrong type. The update raises it if the state is
        not what `init` returned, or if an update is not an array of numbers.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> def f(x): return jnp.sum(x ** 2)
      >>> dropout = lrd_optax.learning_rate_dropout(keep_prob=0.5, key=0)
      >>> solver = optax.chain(optax.sgd(0.1), dropout)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> state = solver.init(params)
      >>> for _ in range(4):
      ...   updates, state = solver.update(jax.grad(f)(params), state, params)
      ...   params = optax.apply_updates(params, updates)
      ...   print(params)
      [0.8 1.6 3. ]
      [0.64 1.6  2.4 ]
      [0.64 1.28 2.4 ]
      [0.51199996 1.0239999  2.4       ]

    References:
      Lin et al, `Learning Rate Dropout <https://arxiv.org/abs/1912.00144>`_, 2019;
      IEEE TNNLS 34(11), 2023, doi 10.1109/TNNLS.2022.3155181
    """
    _checks.choice("sampler", sampler, ("bernoulli", "cycle"))
    probs, probs_prefix = jax.tree.flatten(keep_prob, is_leaf=_is_schedule)
    for prob in probs or [keep_prob]:
        if not _is_schedule(prob):
            _check_keep_prob("keep_prob", prob, sampler)
    _keys.check_key(key)
    if not isinstance(unbiased, (bool, np.bool_)):
        raise TypeError(f"unbiased must be True or False, got {unbiased!r}")
    if not _prefixes.is_function(granularity):
        _prefixes.check_granularity(granularity)
    steps = _checks.whole_number("hold_steps", hold_steps)
    if isinstance(steps, int):
        steps = _masks.Fixed(steps)

    def init_fn(params: optax.Params) -> LearningRateDropoutState:
        del params
        return LearningRateDropoutState(jnp.zeros([], jnp.int32), _keys.key_words(key))

    def update_fn(
        updates: optax.Updates, state: LearningRateDropoutState, params: Any = None
    ) -> tuple[optax.Updates, LearningRateDropoutState]:
        del params
        leaves, treedef = jax.tree.flatten(updates)
        _checks.state(state)
        _checks.updates(leaves)
        axes = _prefixes.axes_per_leaf(granularity, updates)
        numbers = _prefixes.numbers_per_leaf("keep_prob", probs_prefix, updates)
        shares = [_share(prob, state.count, sampler) for prob in probs]
        # Outside of jit too, one dispatch for the whole tree if its devices allow it.
        apply = _apply_masks_jitted if _meshes.on_same_devices(leaves) else _apply_masks
        state = LearningRateDropoutState(state.count, state.rng_key)
        leaves, state = apply(
            leaves,
            state,
            shares,
            steps,
            plan=tuple(zip(axes, numbers, strict=True)),
            sampler=sampler,
            unbiased=bool(unbiased),
        )
        return jax.tree.unflatten(treedef, leaves), state

    return optax.GradientTransformation(init_fn, update_fn)


def sample_mask(dropout: optax.GradientTransformation, state: Any, tree: Any) -> Any:
    """Returns the mask that ``dropout.update(..., state)`` applies.

    Use it to look at masks, to replay them, and in tests.

    Args:
      dropout: what `learning_rate_dropout` returns, or a wrapper of it that takes its
        updates, as :func:`optax.masked`. What a wrapper leaves alone counts as kept.
      state: the state before the update, or a tree that holds it and no other of its
        type, such as the state of a chain.
      tree: a tree with the structure of the updates. Only the shapes, dtypes and
        shardings of its leaves are used, so :class:`jax.ShapeDtypeStruct` will do.
        Inside ``shard_map`` pass the arrays: their mask also depends on the mesh axes
        over which they vary.

    Returns:
      A tree of the same structure. Its leaves are boolean arrays of the same shapes,
      True where an element is kept.

    Raises:
      TypeError: if `dropout` is not a transformation, or as the update does.
      ValueError: if `state` holds several states, or as the update does.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax, optax
      >>> updates = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
      >>> dropout = lrd_optax.learning_rate_dropout(keep_prob=0.5, key=0)
      >>> optimizer = optax.chain(optax.sgd(1.0), dropout)
      >>> state = optimizer.init(updates)
      >>> lrd_optax.sample_mask(dropout, state, updates)["w"]
      Array([[False,  True,  True],
             [ True, False, False]], dtype=bool)
      >>> optimizer.update(updates, state)[0]["w"]
      Array([[ 0., -1., -1.],
             [-1.,  0.,  0.]], dtype=float32)
    """
    if not (hasattr(dropout, "init") and hasattr(dropout, "update")):
        raise TypeError(
            "sample_mask takes (dropout, state, tree), where dropout is what "
            f"learning_rate_dropout returns, got {_checks.shown(dropout)} for it"
        )
    ones = jax.tree.map(_ones_like, tree)
    _checks.updates(jax.tree.leaves(ones))
    wanted = jax.eval_shape(dropout.init, ones)
    if not any(map(_is_state, jax.tree.leaves(wanted, is_leaf=_is_state))):
        raise TypeError(
            "dropout must be, or wrap, what learning_rate_dropout returns, "
            "got a transformation without it"
        )
    updates, _ = dropout.update(ones, _find(wanted, state))
    return jax.tree.map(lambda update: update != 0, updates)


def _is_state(node: Any) -> bool:
    return isinstance(node, LearningRateDropoutState)


def _find(wanted: Any, state: Any) -> Any:
    """Returns the one node of a state that is of the kind of `wanted`."""
    kind, name = type(wanted), type(wanted).__name__
    structure: Any = jax.tree.structure(wanted)

    def is_wanted(node: Any) -> bool:
        if kind is tuple:  # a chain, which other chains may hold
            return bool(jax.tree.structure(node) == structure)
        return isinstance(node, kind)

    def is_end(node: Any) -> bool:
        return is_wanted(node) or isinstance(node, optax.MaskedState)

    ends = [node for node in jax.tree.leaves(state, is_leaf=is_end) if is_end(node)]
    found = [node for node in ends if is_wanted(node)]
    if len(found) > 1:
        raise ValueError(
            f"state must hold one {name}, got {len(found)}: "
            "pass the one of this transformation"
        )
    if ends and not found:  # inside, the leaves have other numbers
        raise ValueError(
            f"state must hold a {name} outside of optax.masked: "
            "pass optax.masked(...) itself as dropout"
        )
    if not found and kind is not tuple:
        raise TypeError(
            f"state must be, or hold, the {name} that init returns, as the state of a "
            f"chain or optimizer.opt_state in Flax NNX, got {_checks.shown(state)}"
        )
    return found[0] if found else state


def _ones_like(leaf: Any) -> Any:
    """Returns ones of the shape, dtype and sharding of an array, or of its shape."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        sharding = _meshes.explicit_sharding(leaf, leaf)
        return jnp.ones(leaf.shape, leaf.dtype, out_sharding=sharding)
    is_number = isinstance(leaf, (int, float, complex)) or hasattr(leaf, "dtype")
    return jnp.ones_like(leaf) if is_number else leaf


def _is_schedule(value: Any) -> bool:
    # The variables of Flax NNX can be called too.
    return callable(value) and not hasattr(value, "__jax_array__")


def _check_keep_prob(name: str, value: Any, sampler: str) -> Any:
    """Returns a probability as a number or an array, as `_checks.number` does."""
    value = _checks.number(name, value, above=0, most=1)
    if sampler == "cycle" and isinstance(value, float):
        length = _masks.cycle_length(max(value, 2**-24))
        if np.float32(1 / length) != np.float32(value):
            raise ValueError(
                f"{name} must be 1/n for a whole number n of at most 2**24 if sampler "
                f'is "cycle", got {value}, which is 1/{1 / value:g}'
            )
    return value


def _share(prob: Any, count: jax.Array, sampler: str) -> _masks.Whole:
    """Returns how much is kept: a threshold, or the length of a cycle."""
    find = _masks.threshold if sampler == "bernoulli" else _masks.cycle_length
    if not _is_schedule(prob):
        return find(prob)
    # In Flax NNX the count may be a variable, which has less operators than an array.
    value = _checks.call("the keep_prob schedule", prob, jnp.asarray(count))
    name = "the value of the keep_prob schedule"
    share = find(_check_keep_prob(name, value, sampler))
    # An array, since a number would be compiled anew for each count.
    return share if share is _masks.ALL else jnp.asarray(share, jnp.uint32)


def _apply_masks(
    leaves: Any,
    state: LearningRateDropoutState,
    shares: list[_masks.Whole],
    hold_steps: _masks.Whole,
    *,
    plan: tuple[tuple[_masks.Axes, int], ...],
    sampler: str,
    unbiased: bool,
) -> tuple[list[Any], LearningRateDropoutState]:
    """Returns the leaves, with 0 where an element is dropped, and the next state.

    The plan holds, for each leaf, the axes along which decisions differ, and the number
    of its share.
    """
    key, hold = jnp.asarray(state.rng_key), jnp.asarray(state.count).astype(jnp.uint32)
    next_key = _keys.next_key(key)
    if not (isinstance(hold_steps, int) and hold_steps == 1):
        steps = jnp.maximum(jnp.asarray(hold_steps).astype(jnp.uint32), 1)
        hold, step = jnp.divmod(hold, steps)
        next_key = jnp.where(step == steps - 1, next_key, key)
    next_state = LearningRateDropoutState(optax.safe_increment(state.count), next_key)
    if sampler == "bernoulli":
        words = _keys.mask_words(key)
        rules = [(words, _masks.Window(share)) for share in shares]
    else:  # all holds of a cycle draw from its first key
        windows = [_masks.cycle_window(hold, length) for length in shares]
        rules = [(_keys.mask_words(key, place), window) for place, window in windows]

    @functools.cache
    def words_of(number: int, varying: frozenset[Any]) -> _keys.Words:
        return _keys.shard_words(rules[number][0], varying)

    kept = []
    for position, (leaf, (axes, number)) in enumerate(zip(leaves, plan, strict=True)):
        window = rules[number][1]
        if not window.keeps_all:
            words = words_of(number, _meshes.varying_axes(jax.typeof(leaf)))
            mask = _masks.leaf_mask(words, position, leaf, axes, window)
            leaf = _select(mask, leaf, window.limit if unbiased else None)
        kept.append(leaf)
    return kept, next_state


_apply_masks_jitted = jax.jit(
    _apply_masks, static_argnames=("plan", "sampler", "unbiased")
)


def _select(mask: jax.Array, leaf: Any, limit: _masks.Whole | None) -> jax.Array:
    """Returns the leaf where the mask is True, and 0 elsewhere.

    With a limit, the leaf is divided by the probability that masks have at this limit.
    The dtype and the weak type are kept.
    """
    update = jnp.asarray(leaf)
    if limit is not None:
        update = _divide(update, limit)
    return jax.lax.select(mask, update, jax.lax.full_like(update, 0))


def _divide(update: jax.Array, limit: _masks.Whole) -> jax.Array:
    """Returns `update` divided by the probability that masks have at `limit`."""
    if not jnp.issubdtype(update.dtype, jnp.inexact):
        raise TypeError(f"unbiased needs float or complex updates, got {update.dtype}")
    # 1 / keep_prob rounded to bfloat16 would be off by up to 0.4 %.
    narrow = jnp.finfo(update.dtype).bits < 32
    wide = update.astype(jnp.float32) if narrow else update
    scale = _masks.inverse_probability(limit, jnp.finfo(wide.dtype).dtype)
    scaled = wide * jax.lax.full_like(wide, scale)  # full_like: keeps a weak type weak
    return scaled.astype(update.dtype) if narrow else scaled
