"""The mask of a key, for tests that ask for one."""

from typing import Any

import lrd_optax


def mask_of(rng_key: Any, tree: Any, keep_prob: Any = 0.5, **kwargs: Any) -> Any:
    """Returns the mask of a first update whose state holds `rng_key`."""
    dropout = lrd_optax.learning_rate_dropout(keep_prob, key=rng_key, **kwargs)
    return lrd_optax.sample_mask(dropout, dropout.init(None), tree)
