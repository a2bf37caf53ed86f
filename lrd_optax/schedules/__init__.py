"""Learning-rate schedules as Optax schedules, exact to the last step under jit.

Each function here returns a schedule: a function of the update count. The count is a
number or an array, of whole numbers or floats. The value is float32 (float64 under x64)
of the same shape, weakly typed if it is a scalar. Counts and steps are below 2**31: a
larger count is taken as 2**31 - 1, a negative one as 0. Values and steps may be JAX
arrays, even traced ones. The values of these are not checked.

Every function raises a ValueError or a TypeError if a value is not a finite number, a
number of steps is not a whole number, a schedule is not a function, or an argument is
outside of the range that its description gives.

* Decays without an end: `inverse_time_decay`, `step_decay`, `exponential_step_decay`,
  `natural_exponential_decay`, `inverse_sqrt_decay`.
* Decays to an end: `polynomial_decay`, `cosine_annealing`, `warmup_stable_decay`.
* Cycles: `cyclical`, `cosine_annealing_warm_restarts`.
* Made from other schedules: `warmup` rises to the first value of a schedule,
  `per_epoch` lets it count epochs, `multiply` multiplies several, `clamp` keeps it
  within bounds, `repeat` starts it again and again, `shift` moves it in time.
"""

from ._compose import clamp as clamp
from ._compose import multiply as multiply
from ._compose import per_epoch as per_epoch
from ._compose import repeat as repeat
from ._compose import shift as shift
from ._cyclical import cosine_annealing_warm_restarts as cosine_annealing_warm_restarts
from ._cyclical import cyclical as cyclical
from ._decay import cosine_annealing as cosine_annealing
from ._decay import exponential_step_decay as exponential_step_decay
from ._decay import inverse_sqrt_decay as inverse_sqrt_decay
from ._decay import inverse_time_decay as inverse_time_decay
from ._decay import natural_exponential_decay as natural_exponential_decay
from ._decay import polynomial_decay as polynomial_decay
from ._decay import step_decay as step_decay
from ._warmup import warmup as warmup
from ._warmup import warmup_stable_decay as warmup_stable_decay
