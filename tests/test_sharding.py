"""The masks of one device on eight, under any sharding, without communication."""

import subprocess
import sys

CODE = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import lrd_optax

tx = optax.chain(optax.sgd(0.1), lrd_optax.learning_rate_dropout(0.5, key=0))
updates = jnp.ones((16, 24))
expected, _ = jax.jit(tx.update)(updates, tx.init(updates))
collectives = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
specs = P(), P("x"), P(None, "y"), P("x", "y"), P(("x", "y")), P(None, ("x", "y"))
for axis_type in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        for spec in specs:
            local = jax.device_put(updates, NamedSharding(mesh, spec))
            state = tx.init(local)
            step = jax.jit(tx.update).lower(local, state).compile()
            np.testing.assert_array_equal(step(local, state)[0], expected)
            assert step(local, state)[0].sharding.shard_shape((16, 24)) == (
                local.sharding.shard_shape((16, 24))
            )
            hlo = step.as_text()
            assert not any(name in hlo for name in collectives), hlo
            assert spec == P() or "f32[16,24]" not in hlo, hlo
        total = jax.jit(jnp.sum).lower(local).compile()
        assert "all-reduce" in total.as_text()  # the check can fail
print("same")
"""


def test_same_masks_on_eight_devices():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE],
        capture_output=True,
        text=True,
        env={"JAX_PLATFORMS": "cpu"},
    )
    assert run.stdout == "same\n", run.stderr
