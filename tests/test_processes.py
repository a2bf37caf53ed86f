"""Two processes draw the masks that one draws, and train the same parameters."""

import runpy
import signal
import subprocess
import sys
from pathlib import Path

import chex
import compilation
import jax
import numpy as np
import pytest
from drawn_masks import mask_of

import lrd_optax

pytestmark = pytest.mark.slow

PATH = Path(__file__).parent.parent / "examples" / "multi_process.py"
sys.path.insert(0, str(PATH.parent))
try:
    EXAMPLE = runpy.run_path(str(PATH))
finally:
    del sys.path[0]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The digests that two processes print, and the arrays they save."""
    out = tmp_path_factory.mktemp("processes") / "two.npz"
    command = [sys.executable, PATH, "--num-processes", "2", "--out", out]
    env = {"PYTHONWARNINGS": "error", **compilation.ENVIRONMENT}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, text=True, env=env, start_new_session=True
    ) as launcher:
        try:
            lines = launcher.communicate(timeout=120)[0].splitlines()
        except BaseException:
            launcher.send_signal(signal.SIGINT)  # so that it stops what it has started
            raise
    assert launcher.returncode == 0
    with np.load(out) as arrays:
        return [s.split()[1] for s in lines if s.startswith("masks:")], dict(arrays)


@pytest.fixture(scope="module")
def one_process():
    """Parameters and masks of the same training in this process."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return EXAMPLE["train"](mesh)[:2]


def test_every_process_has_the_same_masks(two_processes, one_process):
    digests, arrays = two_processes
    assert len(digests) == 2
    assert digests[0] == digests[1]
    for name, mask in one_process[1].items():
        np.testing.assert_array_equal(arrays[f"masks_{name}"], mask)


def test_same_masks_as_without_a_mesh(one_process):
    params, expected = one_process
    dropout = lrd_optax.learning_rate_dropout(0.5, key=0)
    state, masks = dropout.init(params), []
    for _ in expected["w1"]:
        masks.append(mask_of(state.rng_key, params, 0.5))
        _, state = dropout.update(params, state)
    chex.assert_trees_all_equal(
        jax.tree.map(lambda *steps: np.stack(steps), *masks), expected
    )


def test_same_parameters(two_processes, one_process):
    for name, param in one_process[0].items():
        # Gradients may be summed in another order. Adam's steps are 0.01.
        np.testing.assert_allclose(two_processes[1][name], param, rtol=0, atol=1e-6)
