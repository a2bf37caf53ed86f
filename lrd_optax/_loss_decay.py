"""Loss decay: the loss, and with it the gradient, shrinks over time."""

import optax

from lrd_optax import _checks


def loss_decay(schedule: optax.Schedule) -> optax.GradientTransformation:
    r"""Multiplies the gradient by a schedule, as if the loss had been multiplied by it.

    With a schedule :math:`c(t)`, the gradient :math:`\nabla (c(t) L) = c(t) \nabla L`
    goes into the optimizer. Place it first in the chain, where the gradient is still
    that of the loss. A clipping of the gradient behind it undoes it wherever it clips.

    It is learning-rate decay by the same :math:`c(t)` only where a step is the gradient
    times a number:

    * plain SGD: the same.
    * SGD with momentum: not the same. Earlier gradients keep the factors of their own
      time, so what is left of them is not decayed: steps are larger.
    * Adam, RMSprop and Adadelta divide by a mean size of the last gradients, which has
      decayed with them: little is left of a decay that is slow beside their memory.
      Decayed to 0.1 in 20,000 steps, steps shrink to 0.88 (Adam), 1.00 (RMSprop) and
      0.98 (Adadelta) of what they were, in place of 0.1.
    * AdaGrad divides by the root of the sum of all squares since the first step, early
      ones weigh more: to 0.22.

    It is :func:`optax.scale_by_schedule` with a name for the purpose.

    Args:
      schedule: :math:`c`, a function of the update count.

    Returns:
      An :class:`optax.GradientTransformation` with state
      :class:`optax.ScaleByScheduleState`. Dtypes are kept.

    Raises:
      TypeError: if `schedule` is no function.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> decay = lrd_optax.schedules.step_decay(1.0, 0.5, 1)
      >>> solver = optax.chain(lrd_optax.loss_decay(decay), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 2.0])
      >>> state = solver.init(params)
      >>> for _ in range(3):
      ...   updates, state = solver.update(jnp.ones(2), state, params)
      ...   print(updates)
      [-0.1 -0.1]
      [-0.05 -0.05]
      [-0.025 -0.025]

    References:
      Wei, `Forget the Learning Rate, Decay Loss <https://arxiv.org/abs/1905.00094>`_,
      2019
    """
    return optax.scale_by_schedule(_checks.schedule(schedule))
