"""Learning Rate Dropout as a gradient transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrd_optax import _checks, _keys, _masks, _meshes


class LearningRateDropoutState(NamedTuple):
    """State of `learning_rate_dropout`.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      rng_key: two words, ``uint32[2]``. The next update draws its masks from them and
        replaces them.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax
    rng_key: jax.Array


def learning_rate_dropout(
    keep_prob: optax.ScalarOrSchedule = 0.5,
    *,
    key: _keys.KeyLike,
    unbiased: bool = False,
) -> optax.GradientTransformation:
    r"""Keeps each element of the update with probability `keep_prob`; the rest is 0.

    At step :math:`t` the base optimizer proposes the update :math:`u_t`, computed
    from the full gradient. A fresh mask with independent entries decides which
    elements of it are applied:

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
        which may be traced. With the number 1 the updates are returned bit for bit.
        Numbers are checked, including those that a schedule returns. The value of a
        JAX array is not checked: it is rounded to float32, nothing is kept at or
        below 0 (and at NaN), and everything is kept at or above 1. The mask has this
        probability to within 2**-24.
      key: the source of the masks, required: an int seed, a typed key of any
        implementation (:func:`jax.random.key`), or a legacy ``uint32`` key
        (:func:`jax.random.PRNGKey`). It may be traced: ``vmap`` over keys trains an
        ensemble in which each member has its own masks. `init` copies the key and
        never consumes it. Two transformations with equal keys draw equal masks.
      unbiased: if True, kept elements are multiplied by ``1 / keep_prob``
        (computed in float32 for narrower dtypes).

    Returns:
      An :class:`optax.GradientTransformation` with state
      :class:`LearningRateDropoutState`. Updates may have any shapes, and any float or
      complex dtypes that can hold a zero. Dtypes and weak types are kept. A complex
      number is kept or dropped as a whole. Values are selected, not multiplied, so a
      dropped NaN becomes 0.

      A mask depends on the key, on the number of its leaf in the flattened tree, and
      on the indices in the global array. So it is the same under any sharding by
      ``jit``. (An array may have at most 2**32 rows of 2**32 elements, where a row
      spans one or more trailing dimensions.) Inside ``shard_map`` each array is one
      shard. An array that varies over a manual mesh axis gets a different mask in
      every shard along that axis; a replicated array gets the same mask in all. With
      ``check_vma=False`` (and in ``pmap``) JAX does not know which arrays vary, and
      all shards draw the same masks unless their keys differ.

    Raises:
      ValueError: if a number `keep_prob` is outside of (0, 1], or `keep_prob` or `key`
        has a wrong shape. The update raises it if a schedule returns such a value, or
        if the state's key is not two words.
      TypeError: if `keep_prob`, `key` or `unbiased` has a wrong type. The update raises
        it if the state is not what `init` returned, or if an update is not an array of
        numbers.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> def f(x): return jnp.sum(x ** 2)
      >>> dropout = lrd_optax.learning_rate_dropout(0.5, key=0)
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
    if not callable(keep_prob):
        _checks.number("keep_prob", keep_prob, above=0, most=1)
    _keys.check_key(key)
    if not isinstance(unbiased, (bool, np.bool_)):
        raise TypeError(f"unbiased must be True or False, got {unbiased!r}")

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
        prob = keep_prob
        if callable(prob):
            prob = _checks.call("the keep_prob schedule", prob, state.count)
            name = "the value of the keep_prob schedule"
            prob = _checks.number(name, prob, above=0, most=1)
        limit = _masks.threshold(prob)
        if callable(keep_prob) and limit is not _masks.ALL:
            # An array, since a number would be compiled anew for each count.
            limit = jnp.asarray(limit, jnp.uint32)
        # Outside of jit too, one dispatch for the whole tree if its devices allow it.
        apply = _apply_masks_jitted if _meshes.on_same_devices(leaves) else _apply_masks
        state = LearningRateDropoutState(state.count, state.rng_key)
        leaves, state = apply(leaves, state, limit, bool(unbiased))
        return jax.tree.unflatten(treedef, leaves), state

    return optax.GradientTransformation(init_fn, update_fn)


def sample_mask(
    rng_key: _keys.KeyLike, tree: Any, keep_prob: jax.typing.ArrayLike
) -> Any:
    """Returns the mask that an update applies if the state holds `rng_key`.

    Use it to look at masks, to replay them, and in tests.

    Args:
      rng_key: the field of :class:`LearningRateDropoutState` before the update,
        ``uint32[2]`` (``state[-1].rng_key`` if the transformation is last in a chain).
        For the mask of the first update, anything that `learning_rate_dropout` takes
        as `key`.
      tree: a tree with the structure of the updates. Only the shapes and shardings of
        its leaves are used, so :class:`jax.ShapeDtypeStruct` will do. Inside
        ``shard_map`` pass the arrays: their mask also depends on the mesh axes over
        which they vary.
      keep_prob: the probability that the update uses: a number in (0, 1] or a float
        scalar array. For a schedule, pass its value: ``schedule(state.count)``.

    Returns:
      A tree of the same structure. Its leaves are boolean arrays of the same shapes,
      True where an element is kept.

    Raises:
      ValueError, TypeError: as for `learning_rate_dropout`.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> updates = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
      >>> dropout = lrd_optax.learning_rate_dropout(0.5, key=0)
      >>> state = dropout.init(updates)
      >>> lrd_optax.sample_mask(state.rng_key, updates, 0.5)["w"]
      Array([[False,  True,  True],
             [ True, False, False]], dtype=bool)
      >>> dropout.update(updates, state)[0]["w"]
      Array([[0., 1., 1.],
             [1., 0., 0.]], dtype=float32)
    """
    _checks.number("keep_prob", keep_prob, above=0, most=1)
    _keys.check_key(rng_key, "rng_key")
    _, words = _keys.step_words(_keys.key_words(rng_key))
    leaves, treedef = jax.tree.flatten(tree)
    masks = _masks.tree_masks(words, leaves, _masks.threshold(keep_prob))
    return jax.tree.unflatten(treedef, masks)


def _apply_masks(
    leaves: Any, state: LearningRateDropoutState, limit: _masks.Limit, unbiased: bool
) -> tuple[list[Any], LearningRateDropoutState]:
    """Returns the leaves, with 0 where an element is dropped, and the next state."""
    next_key, words = _keys.step_words(jnp.asarray(state.rng_key))
    state = LearningRateDropoutState(optax.safe_increment(state.count), next_key)
    if limit is _masks.ALL:
        return leaves, state
    masks = _masks.tree_masks(words, leaves, limit)
    divisor = limit if unbiased else None
    return [_select(*pair, divisor) for pair in zip(masks, leaves, strict=True)], state


_apply_masks_jitted = jax.jit(_apply_masks, static_argnames="unbiased")


def _select(mask: jax.Array, leaf: Any, limit: _masks.Limit | None) -> jax.Array:
    """Returns the leaf where the mask is True, and 0 elsewhere.

    With a limit, the leaf is divided by the probability that masks have at this limit.
    The dtype and the weak type are kept.
    """
    update = jnp.asarray(leaf)
    if limit is not None:
        update = _divide(update, limit)
    return jax.lax.select(mask, update, jax.lax.full_like(update, 0))


def _divide(update: jax.Array, limit: _masks.Limit) -> jax.Array:
    """Returns `update` divided by the probability that masks have at `limit`."""
    if not jnp.issubdtype(update.dtype, jnp.inexact):
        raise TypeError(f"unbiased needs float or complex updates, got {update.dtype}")
    # 1 / keep_prob rounded to bfloat16 would be off by up to 0.4 %.
    narrow = jnp.finfo(update.dtype).bits < 32
    wide = update.astype(jnp.float32) if narrow else update
    scale = _masks.inverse_probability(limit, jnp.finfo(wide.dtype).dtype)
    scaled = wide * jax.lax.full_like(wide, scale)  # full_like: keeps a weak type weak
    return scaled.astype(update.dtype) if narrow else scaled
