"""Learning Rate Dropout and learning-rate schedules for JAX, as parts of Optax."""

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
    found = all(map(_util.find_spec, ("matplotlib", "scipy")))
    return sorted({*globals(), *(["plotting"] if found else [])})
