"""Strict numerics for every test, and helpers that several files share."""

import os
import signal

import compilation

# Before NumPy is loaded: its threads for linear algebra wait by spinning, which takes
# longer than the small products here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ |= compilation.ENVIRONMENT

import jax
import pytest

# For the meshes of test_sharding.py; everything else runs on the first device.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_runtest_setup():
    # What an example does on Ctrl-C ends the process, in a later test its worker.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64(request):
    """Runs the test with 64-bit types off and on; gives which."""
    jax.config.update("jax_enable_x64", request.param)
    yield request.param
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def optax_promotion():
    """Standard dtype promotion: Optax's own schedules and moments need it."""
    with jax.numpy_dtype_promotion("standard"):
        yield
