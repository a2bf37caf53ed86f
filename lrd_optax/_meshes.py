"""What JAX knows about where an array lies, of which its mask has to know.

`kind` is what :func:`jax.typeof` gives for the array, or a ShapeDtypeStruct.
"""

from collections.abc import Hashable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def varying_axes(kind: Any) -> frozenset[Hashable]:
    """Returns the manual mesh axes (of a ``shard_map``) along which it differs."""
    manual = getattr(kind, "manual_axis_type", None)
    # JAX 0.7 has `vma` in its place.
    axes = manual.varying if manual is not None else getattr(kind, "vma", None)
    return frozenset(axes or ())


def explicit_sharding(leaf: Any, kind: Any) -> NamedSharding | None:
    """Returns its sharding over the Explicit axes of the mesh in use, if any.

    Without it JAX would take the mask for replicated there, and compute it whole on
    every device. Over other axes XLA decides.
    """
    sharding, mesh = kind.sharding, jax.sharding.get_abstract_mesh()
    if mesh.empty and isinstance(leaf, jax.core.Tracer):
        mesh = getattr(sharding, "mesh", mesh)  # jit takes it from its arguments
    # Outside of jit and of jax.set_mesh no devices are known to place the mask on.
    if not isinstance(sharding, NamedSharding) or sharding.mesh.abstract_mesh != mesh:
        return None
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = {name for name, each in types if each == AxisType.Explicit}

    def visible(axes: Any) -> tuple[Hashable, ...] | None:
        axes = axes if isinstance(axes, tuple) else (axes,)
        return tuple(axis for axis in axes if axis in explicit) or None

    # Not all of sharding.spec: the mask has no part in what is reduced or not.
    spec = [visible(sharding.spec[dim]) for dim in range(len(sharding.spec))]
    return NamedSharding(mesh, PartitionSpec(*spec)) if any(spec) else None


def lie_together(leaves: list[Any]) -> bool:
    """Returns whether one jitted function may take all of them: False for arrays on
    different devices, outside of jit.
    """

    def devices(leaf: jax.Array) -> tuple[Any, ...]:
        # On a mesh their order counts.
        if isinstance(leaf.sharding, NamedSharding):
            return tuple(leaf.sharding.mesh.devices.flat)
        return tuple(sorted(leaf.devices(), key=lambda device: device.id))

    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    concrete = [leaf for leaf in arrays if not isinstance(leaf, jax.core.Tracer)]
    return len({devices(leaf) for leaf in concrete}) < 2
