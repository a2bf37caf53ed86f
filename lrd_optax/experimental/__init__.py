"""Methods whose evidence is open: they may change, or go, without notice."""

from lrd_optax.experimental._magma import MagmaState as MagmaState
from lrd_optax.experimental._magma import magma as magma
