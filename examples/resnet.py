"""The ResNet for images of 32 x 32, as a Flax NNX module (He et al., 2016).

Its first convolution is 3x3 with stride 1 and no pooling follows it, which suits images
as small as those of CIFAR. With depth 34 and width 64 this is the network of the paper
on Learning Rate Dropout: 21,282,122 parameters for 10 classes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# The number of blocks in the four stages. A block has two convolutions.
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}

# Weights begin as in torchvision. A convolution: He normal with fan_out, so a standard
# deviation of sqrt(2 / (kernel size x output channels)). The head, as every linear
# layer of PyTorch: uniform within 1 / sqrt(inputs); only its bias begins at 0 here.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Block(nnx.Module):
    """Two 3x3 convolutions, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, dtype: Any, rngs: Any):
        more = {"dtype": dtype, "rngs": rngs}
        self.conv1 = convolution(inputs, outputs, 3, stride, **more)
        self.norm1 = batch_norm(outputs, **more)
        self.conv2 = convolution(outputs, outputs, 3, 1, **more)
        self.norm2 = batch_norm(outputs, **more)
        self.projects = inputs != outputs or stride != 1
        if self.projects:
            self.conv3 = convolution(inputs, outputs, 1, stride, **more)
            self.norm3 = batch_norm(outputs, **more)

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = self.norm3(self.conv3(x)) if self.projects else x
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(x)) + shortcut)


class ResNet(nnx.Module):
    """Takes images [batch, height, width, 3], gives float32 logits [batch, classes].

    It computes in `dtype`. Parameters, and the means and variances of BatchNorm, are
    float32 whatever that is.
    """

    def __init__(
        self,
        depth: int = 34,
        width: int = 64,
        classes: int = 10,
        dtype: Any = jnp.float32,
        *,
        rngs: nnx.Rngs,
    ):
        more = {"dtype": dtype, "rngs": rngs}
        self.conv = convolution(3, width, 3, 1, **more)
        self.norm = batch_norm(width, **more)
        blocks, inputs = [], width
        for stage, number in enumerate(BLOCKS[depth]):
            outputs = width * 2**stage
            for i in range(number):
                stride = 2 if stage and i == 0 else 1
                blocks.append(Block(inputs, outputs, stride, **more))
                inputs = outputs
        self.blocks = nnx.Sequential(*blocks)
        self.head = nnx.Linear(inputs, classes, kernel_init=uniform, **more)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.blocks(nnx.relu(self.norm(self.conv(x))))
        return self.head(x.mean((1, 2))).astype(jnp.float32)


def convolution(inputs: int, outputs: int, size: int, stride: int, **more: Any):
    # Not "SAME": with stride 2 that pads only below and to the right.
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=he_normal,
        **more,
    )


# Flax's momentum of 0.9 is what PyTorch calls 0.1.
batch_norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)
