"""Methods whose evidence is open: they may change, or go, without notice.

`magma` masks whole tensors of an optimizer's update, and scales them by how well
gradient and momentum agree. Its state is a `MagmaState`.
"""

from lrd_optax.experimental._magma import MagmaState as MagmaState
from lrd_optax.experimental._magma import magma as magma
