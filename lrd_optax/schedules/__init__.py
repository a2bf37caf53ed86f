"""Learning-rate schedules as Optax schedules, exact to the last step under jit.

Each function here returns a schedule: a function of the update count, a number or an
array of whole numbers or floats, that returns float32 (float64 under x64) of the same
shape, weakly typed if it is a scalar. Negative counts are taken for 0. Values and steps
may be JAX arrays, also traced ones, which are not checked.

Decays: inverse_time_decay, step_decay, exponential_step_decay,
natural_exponential_decay, inverse_sqrt_decay. To an end: polynomial_decay,
cosine_annealing, warmup_stable_decay. Again and again: cyclical,
cosine_annealing_warm_restarts. Of other schedules: warmup, per_epoch, multiply, clamp,
repeat, shift.
"""

from lrd_optax.schedules._annealing import cosine_annealing as cosine_annealing
from lrd_optax.schedules._annealing import polynomial_decay as polynomial_decay
from lrd_optax.schedules._compose import clamp as clamp
from lrd_optax.schedules._compose import multiply as multiply
from lrd_optax.schedules._compose import per_epoch as per_epoch
from lrd_optax.schedules._compose import repeat as repeat
from lrd_optax.schedules._compose import shift as shift
from lrd_optax.schedules._cyclical import (
    cosine_annealing_warm_restarts as cosine_annealing_warm_restarts,
)
from lrd_optax.schedules._cyclical import cyclical as cyclical
from lrd_optax.schedules._decay import exponential_step_decay as exponential_step_decay
from lrd_optax.schedules._decay import inverse_sqrt_decay as inverse_sqrt_decay
from lrd_optax.schedules._decay import inverse_time_decay as inverse_time_decay
from lrd_optax.schedules._decay import (
    natural_exponential_decay as natural_exponential_decay,
)
from lrd_optax.schedules._decay import step_decay as step_decay
from lrd_optax.schedules._warmup import warmup as warmup
from lrd_optax.schedules._warmup import warmup_stable_decay as warmup_stable_decay

__all__ = [
    "clamp",
    "cosine_annealing",
    "cosine_annealing_warm_restarts",
    "cyclical",
    "exponential_step_decay",
    "inverse_sqrt_decay",
    "inverse_time_decay",
    "multiply",
    "natural_exponential_decay",
    "per_epoch",
    "polynomial_decay",
    "repeat",
    "shift",
    "step_decay",
    "warmup",
    "warmup_stable_decay",
]
