"""Loss decay: the loss, and with it the gradient, shrinks over time."""

from __future__ import annotations  # so that help shows short names

import optax

from lrd_optax import _checks


def loss_decay(schedule: optax.Schedule) -> optax.GradientTransformation:
    r"""Multiplies the gradient by a schedule, as if the loss had been multiplied by it.

    With a schedule :math:`c(t)`, the gradient :math:`\nabla (c(t) L) = c(t) \nabla L`
    goes into the optimizer. Place it first in the chain, where the gradient is still
    that of the loss. Gradient clipping after it undoes the decay whenever it clips.

    It equals learning-rate decay by the same :math:`c(t)` only if a step is the
    gradient times a number:

    * Plain SGD: it is the same.
    * SGD with momentum: it is not the same. The momentum holds earlier gradients with
      the larger factors of their own steps, so its steps are larger.
    * Adam, RMSprop and Adadelta divide by a mean size of the last gradients, which
      decays with them. So a decay that is slow compared with their memory has little
      effect: with a decay to 0.1 in 20,000 steps, the steps shrink to 0.88 (Adam), 1.00
      (RMSprop) and 0.98 (Adadelta) of what they were, instead of to 0.1.
    * AdaGrad divides by the root of the sum of all squared gradients since the first
      step. Early gradients weigh more in it, and the steps shrink to 0.22.

    It is :func:`optax.scale_by_schedule`, with a name that states the purpose.

    Args:
      schedule: :math:`c`, a function of the update count.

    Returns:
      An :class:`optax.GradientTransformation` with state
      :class:`optax.ScaleByScheduleState`. Dtypes are kept.

    Raises:
      TypeError: if `schedule` is not a function.

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
