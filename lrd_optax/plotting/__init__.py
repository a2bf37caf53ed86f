"""Plots of schedules, range tests, learning curves, masks and paths.

* `plot_schedules`: schedules against the step.
* `plot_range_test`: the loss against the learning rate.
* `plot_learning_curves`: curves against the step, the mean of seeds with its interval.
* `plot_mask`: one mask, with kept elements dark.
* `plot_trajectories`: paths over the contours of a loss of two parameters.

They need matplotlib and scipy, which the extra ``plot`` installs. ``import lrd_optax``
does not load them. Each function draws on the Axes it is given, or on those of a new
figure, and returns them. The colors are those of Okabe and Ito, which color-blind
people can tell apart. Lines differ in style too.
"""

# isort: off
# First, since it says what to install if matplotlib is missing.
from lrd_optax.plotting._style import COLORS as COLORS

# isort: on
from lrd_optax.plotting._curves import plot_learning_curves as plot_learning_curves
from lrd_optax.plotting._curves import plot_range_test as plot_range_test
from lrd_optax.plotting._curves import plot_schedules as plot_schedules
from lrd_optax.plotting._planes import plot_mask as plot_mask
from lrd_optax.plotting._planes import plot_trajectories as plot_trajectories
