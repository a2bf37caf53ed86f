"""Learning Rate Dropout and learning-rate schedules for JAX, as parts of Optax."""

from lrd_optax import schedules as schedules
from lrd_optax._dropout import LearningRateDropoutState as LearningRateDropoutState
from lrd_optax._dropout import learning_rate_dropout as learning_rate_dropout
from lrd_optax._dropout import sample_mask as sample_mask
from lrd_optax._loss_decay import loss_decay as loss_decay

__version__ = "0.1.0"

__all__ = [
    "LearningRateDropoutState",
    "learning_rate_dropout",
    "loss_decay",
    "sample_mask",
    "schedules",
]
