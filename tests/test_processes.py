"""Two processes draw the masks that one draws, and train the same parameters."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lrd_optax

EXAMPLE = Path(__file__).parent.parent / "examples" / "multi_process.py"
NAMES = ("w1", "b1", "w2", "b2")


def train(number, out):
    """Returns the digests that the processes print, and the arrays they save."""
    command = [sys.executable, EXAMPLE, "--num-processes", str(number), "--out", out]
    env, pipe = {"PYTHONWARNINGS": "error"}, subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, text=True, env=env, start_new_session=True
    ) as launcher:
        try:
            lines = launcher.communicate(timeout=120)[0].splitlines()
        except BaseException:
            os.killpg(launcher.pid, signal.SIGKILL)  # what it has started too
            raise
    assert launcher.returncode == 0
    with np.load(out) as arrays:
        return [s.split()[1] for s in lines if s.startswith("masks:")], dict(arrays)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return [train(number, folder / f"{number}.npz") for number in (1, 2)]


def test_every_process_has_the_same_digest(runs):
    (one, _), (two, _) = runs
    assert len(one) == 1
    assert two == one * 2


def test_same_masks_as_without_processes(runs):
    arrays = runs[0][1]
    params = {name: arrays[name] for name in NAMES}
    dropout = lrd_optax.learning_rate_dropout(0.5, key=0)
    state, masks = dropout.init(params), []
    for _ in arrays["masks_w1"]:
        masks.append(lrd_optax.sample_mask(state.rng_key, params, 0.5))
        _, state = dropout.update(params, state)
    expected = jax.tree.map(lambda *steps: np.stack(steps), *masks)
    for _, arrays in runs:
        for name in NAMES:
            np.testing.assert_array_equal(arrays[f"masks_{name}"], expected[name])


def test_same_parameters(runs):
    (_, one), (_, two) = runs
    for name in NAMES:
        # Gradients may be summed in another order. Adam's steps are 0.01.
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-6)
