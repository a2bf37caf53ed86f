"""The definitions of the schedules in float64 NumPy, on whole counts.

Each function takes the parameters of the schedule of its name and returns a function
of an int64 array. Written from the formulas of their sources, not from the library.
"""

import math
from fractions import Fraction

import numpy as np


def inverse_time_decay(init, rate, steps=1, staircase=False):
    def value(t):
        time = t // steps if staircase else t / steps
        return init / (1 + rate * time)

    return value


def step_decay(init, rate, size, offset=0):
    return lambda t: init * np.power(float(rate), (t + offset) // size)


def exponential_step_decay(init, rate, size):
    return lambda t: init * np.exp(math.log(rate) * (t / size))


def natural_exponential_decay(init, rate):
    return lambda t: init * np.exp(-rate * t)


def polynomial_decay(init, end, power, steps):
    def value(t):
        left = np.maximum(steps - t, 0) / steps
        # 1 - left**power, with its digits where t is small.
        with np.errstate(divide="ignore"):
            done = -np.expm1(power * np.log1p(-np.minimum(t / steps, 1)))
        return end * done + init * left**power

    return value


def cosine_annealing(high, low, steps):
    def value(t):
        left = np.maximum(steps - t, 0) / steps
        return low + (high - low) * np.sin(np.pi / 2 * left) ** 2

    return value


def restarts(first, t_mult):
    """The first steps of all cycles below 2**31, and of the next."""
    t_mult = Fraction(str(t_mult))
    starts, length = [0], Fraction(first)
    while starts[-1] < 2**31:
        starts.append(starts[-1] + min(math.floor(length + Fraction(1, 2)), 2**31 - 1))
        length *= t_mult
    return starts


def cosine_annealing_warm_restarts(high, low, first, t_mult=1, peak_mult=1.0):
    starts = np.array(restarts(first, t_mult) if t_mult != 1 else [])

    def value(t):
        if t_mult == 1:
            cycle, left = t // first, (first - t % first) / first
        else:
            cycle = np.searchsorted(starts, t, side="right") - 1
            end = starts[cycle + 1]
            left = (end - t) / (end - starts[cycle])
        peak = np.maximum(low, high * np.power(float(peak_mult), cycle))
        return low + (peak - low) * np.sin(np.pi / 2 * left) ** 2

    return value


WINDOWS = {
    "triangular": lambda x: 1 - x,
    "welch": lambda x: 1 - x**2,
    "hann": lambda x: np.cos(np.pi / 2 * x) ** 2,
}


def cyclical(
    base,
    peak,
    up,
    window="triangular",
    step_size_down=None,
    cycle_gamma=1.0,
    step_gamma=1.0,
    decay_base=False,
):
    down = up if step_size_down is None else step_size_down

    def value(t):
        cycle, t_in = t // (up + down), t % (up + down)
        x = np.where(t_in < up, (up - t_in) / up, (t_in - up) / down)
        height = WINDOWS[window](x) if isinstance(window, str) else window(x)
        shrink = np.power(cycle_gamma, cycle) * np.power(step_gamma, t)
        if decay_base:
            return shrink * (base + (peak - base) * height)
        return base + (peak - base) * shrink * height

    return value


def inverse_sqrt_decay(init, steps=1):
    return lambda t: init / np.sqrt(1 + t / steps)


def warmup(schedule, steps, init=None):
    def value(t):
        target = schedule(np.int64(0))
        start = target / (steps + 1) if init is None else init
        line = (start * (steps - t) + target * t) / max(steps, 1)
        return np.where(t < steps, line, schedule(np.maximum(t - steps, 0)))

    return value


def warmup_stable_decay(
    peak, up, stable, down, init=None, end_value=0.0, decay="linear"
):
    def stable_decay(t):
        left = np.clip(stable + down - t, 0, down) / down
        done = np.clip(t - stable, 0, down) / down
        height = {
            "linear": left,
            "cosine": np.sin(np.pi / 2 * left) ** 2,
            "1-sqrt": left / (1 + np.sqrt(done)),  # = 1 - sqrt(done)
        }[decay]
        return end_value + (peak - end_value) * height

    return warmup(stable_decay, up, init)
