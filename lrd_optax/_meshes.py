"""On which devices an array lies, as far as its mask has to know.

`aval` is what :func:`jax.typeof` returns for the array, or a ShapeDtypeStruct.
"""

from collections.abc import Hashable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def varying_axes(aval: Any) -> frozenset[Hashable]:
    """Returns the manual mesh axes (of ``shard_map``) along which an array differs."""
    manual = getattr(aval, "manual_axis_type", None)
    # JAX 0.7 has `vma` instead.
    axes = manual.varying if manual is not None else getattr(aval, "vma", None)
    return frozenset(axes or ())


def explicit_sharding(leaf: Any, aval: Any) -> NamedSharding | None:
    """Returns the leaf's sharding over the Explicit axes of the mesh in use, if any.

    Without it JAX would take the mask as replicated over these axes, and compute all of
    it on every device. Over other axes XLA decides.
    """
    sharding, mesh = aval.sharding, jax.sharding.get_abstract_mesh()
    if mesh.empty and isinstance(leaf, jax.core.Tracer):
        mesh = getattr(sharding, "mesh", mesh)  # jit takes the mesh from its arguments
    # Outside of jit and of jax.set_mesh no devices are known to place the mask on.
    if not isinstance(sharding, NamedSharding) or sharding.mesh.abstract_mesh != mesh:
        return None
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = {name for name, axis_type in types if axis_type == AxisType.Explicit}

    def select_explicit(axes: Any) -> tuple[Hashable, ...] | None:
        axes = axes if isinstance(axes, tuple) else (axes,)
        return tuple(axis for axis in axes if axis in explicit) or None

    # The reduced and unreduced axes of the spec are left out: they are not the mask's.
    spec = [select_explicit(sharding.spec[dim]) for dim in range(len(sharding.spec))]
    return NamedSharding(mesh, PartitionSpec(*spec)) if any(spec) else None


def on_same_devices(leaves: list[Any]) -> bool:
    """Returns whether one jitted function may take all leaves.

    It may not if they are arrays on different devices, outside of jit.
    """

    def devices(leaf: jax.Array) -> tuple[Any, ...]:
        # In a mesh the order of the devices counts.
        if isinstance(leaf.sharding, NamedSharding):
            return tuple(leaf.sharding.mesh.devices.flat)
        return tuple(sorted(leaf.devices(), key=lambda device: device.id))

    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    concrete = [leaf for leaf in arrays if not isinstance(leaf, jax.core.Tracer)]
    return len({devices(leaf) for leaf in concrete}) < 2
