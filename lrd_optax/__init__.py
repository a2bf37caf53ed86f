"""Learning Rate Dropout and learning-rate schedules for JAX, as parts of Optax."""

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

__version__ = "0.1.0"
