"""Learning Rate Dropout for JAX: a gradient transformation for Optax chains."""

from lrd_optax._dropout import LearningRateDropoutState as LearningRateDropoutState
from lrd_optax._dropout import learning_rate_dropout as learning_rate_dropout
from lrd_optax._dropout import sample_mask as sample_mask

__version__ = "0.1.0"
