"""Trains a small network on handwritten digits with Learning Rate Dropout (LRD)."""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import lrd_optax

epochs, batch_size = 10, 32
x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
x, test_x, y, test_y = train_test_split(x, y, train_size=1280, random_state=0)
steps = len(x) // batch_size  # updates in one epoch

decay = lrd_optax.schedules.cosine_annealing(1e-2, 0, decay_steps=(epochs - 1) * steps)
rate = lrd_optax.schedules.warmup(decay, warmup_steps=steps)
dropout = lrd_optax.learning_rate_dropout(keep_prob=0.5, key=0, unbiased=True)

rngs = nnx.Rngs(0)
hidden, head = nnx.Linear(64, 128, rngs=rngs), nnx.Linear(128, 10, rngs=rngs)
model = nnx.Sequential(hidden, nnx.relu, head)
optimizer = nnx.Optimizer(model, optax.chain(optax.adam(rate), dropout), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss_fn)(model))


for epoch in range(epochs):
    order = np.random.default_rng(epoch).permutation(len(x))
    for batch in order.reshape(steps, batch_size):
        train_step(model, optimizer, x[batch], y[batch])
    accuracy = (model(test_x).argmax(-1) == test_y).mean()
    print(f"epoch {epoch + 1}: test accuracy {accuracy:.1%}")
