"""Learning Rate Dropout and learning-rate schedules for JAX, as parts of Optax.

With Learning Rate Dropout (LRD), each parameter is updated with probability `keep_prob`
at each step, and otherwise stays where it is. It is the last part of a chain:

>>> import lrd_optax, optax
>>> rate = lrd_optax.schedules.cosine_annealing(1e-3, 1e-5, decay_steps=10_000)
>>> dropout = lrd_optax.learning_rate_dropout(keep_prob=0.5, key=0)
>>> optimizer = optax.chain(optax.adam(rate), dropout)

Learning Rate Dropout:

* `learning_rate_dropout`: keeps each element of the update with a probability. Its
  state is a `LearningRateDropoutState`.
* `sample_mask`: the mask that the next update applies.

Learning rates:

* `schedules`: decays, cycles, and what makes schedules of schedules: ``warmup``,
  ``per_epoch``, ...
* `loss_decay`: multiplies the gradient by a schedule, first in the chain.
* `lr_range_test`: trains while the rate rises. It returns a `RangeTestResult`.
* `suggest_learning_rate`, `suggest_cycle`: the rates that its curve suggests.
* `range_test_band`: the mean of many seeds with a band, a `RangeTestBand`.

More:

* `plotting`: pictures of schedules, range tests, learning curves, masks and paths. It
  needs matplotlib, and is imported when it is first used.
* `experimental`: methods whose evidence is open, as ``magma``.

``help(lrd_optax.learning_rate_dropout)`` shows the arguments of a function.
"""

import importlib as _importlib
import importlib.util as _util
import typing as _typing

from lrd_optax import experimental as experimental
from lrd_optax import schedules as schedules
from lrd_optax._dropout import LearningRateDropoutState as LearningRateDropoutState
from lrd_optax._dropout import learning_rate_dropout as learning_rate_dropout
from lrd_optax._dropout import sample_mask as sample_mask
from lrd_optax._loss_decay import loss_decay as loss_decay
from lrd_optax._range_result import RangeTestBand as RangeTestBand
from lrd_optax._range_result import RangeTestResult as RangeTestResult
from lrd_optax._range_result import range_test_band as range_test_band
from lrd_optax._range_test import lr_range_test as lr_range_test
from lrd_optax._suggestions import suggest_cycle as suggest_cycle
from lrd_optax._suggestions import suggest_learning_rate as suggest_learning_rate

if _typing.TYPE_CHECKING:
    from lrd_optax import plotting as plotting

__version__ = "0.1.0"


# `plotting` is imported when it is touched, since it imports matplotlib.
def __getattr__(name: str) -> _typing.Any:
    if name == "plotting":
        return _importlib.import_module("lrd_optax.plotting")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Without matplotlib it is left out: `help` gets every attribute that is named here.
    try:
        found = all(map(_util.find_spec, ("matplotlib", "scipy")))
    except ValueError:  # a stand-in for one of them, as in the tests of others
        found = False
    return sorted({*globals(), *(["plotting"] if found else [])})
