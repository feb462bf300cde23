"""Records what TensorFlow's optimizers do: trains a few steps, saves a checkpoint, and goes on; run by hand.

    pip install tensorflow-cpu==2.21.0 tf_keras==2.21.0
    python tests/data/tf_optimizers/record.py

Each case is a checkpoint CASE.index and CASE.data-00000-of-00001 after 4 steps. recorded.npz has the batches (x, y) of
all steps, and of each case, in a row of `results`, the losses of the 6 steps after the checkpoint and the weights they
end with, one after the other. recorded.json has each case's row, torch optimizer and its arguments: TensorFlow's, under
torch's names.
"""

import json
import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
import numpy as np
import tensorflow as tf
import tf_keras

HERE = Path(__file__).parent
v1 = tf.compat.v1
BEFORE, AFTER = 4, 6
SHAPES = {"layer_1/kernel": (4, 3), "layer_1/bias": (3,), "layer_2/kernel": (3, 2), "layer_2/bias": (2,)}
rng = np.random.default_rng(7)
x = rng.standard_normal((BEFORE + AFTER, 5, 4)).astype(np.float32)
y = rng.standard_normal((BEFORE + AFTER, 5, 2)).astype(np.float32)
start = {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}
results, cases = [], {}


def loss_of(weights, inputs, targets):
    """Return the loss of one batch."""
    k1, b1, k2, b2 = weights
    return tf.reduce_mean((tf.tanh(inputs @ k1 + b1) @ k2 + b2 - targets) ** 2)


def note(case, torch_optimizer, arguments, losses, weights):
    """Keep what a case went on to do."""
    cases[case] = {"row": len(results), "optimizer": torch_optimizer, "arguments": arguments}
    results.append(np.concatenate([np.array(losses[BEFORE:]), *(np.ravel(value) for value in weights)]))


def graph_case(case, make, torch_optimizer, arguments, *, scope="", average=None):
    """Train in a graph of TensorFlow 1, where a checkpoint has names."""
    with tf.Graph().as_default(), v1.Session() as session:
        weights = [v1.get_variable(name, initializer=value) for name, value in start.items()]
        inputs, targets = v1.placeholder(tf.float32, (5, 4)), v1.placeholder(tf.float32, (5, 2))
        loss = loss_of(weights, inputs, targets)
        with v1.variable_scope(scope):
            train = [optimizer.minimize(loss, var_list=weights) for optimizer in make()]
            if average is not None:
                with tf.control_dependencies(train):
                    train = [tf.train.ExponentialMovingAverage(0.5, name=average).apply(weights)]
        session.run(v1.global_variables_initializer())
        losses = []
        for step in range(BEFORE + AFTER):
            if step == BEFORE:
                v1.train.Saver().save(session, str(HERE / case), write_meta_graph=False, write_state=False)
            losses.append(session.run([loss, train], {inputs: x[step], targets: y[step]})[0])
        note(case, torch_optimizer, arguments, losses, session.run(weights))
    print(case, [name for name, _ in tf.train.list_variables(str(HERE / case))])


def object_case(case, optimizer, torch_optimizer, arguments, *, is_keras3=False):
    """Train eagerly, and save a graph of objects."""
    holder = tf.Module()
    if is_keras3:
        layers = [keras.layers.Dense(3, name="layer_1"), keras.layers.Dense(2, name="layer_2")]
        for layer, size in zip(layers, (4, 3), strict=True):
            layer.build((None, size))
        variables = [variable for layer in layers for variable in layer.trainable_variables]
        for variable, value in zip(variables, start.values(), strict=True):
            variable.assign(value)
        root = tf.train.Checkpoint(optimizer=optimizer)
    else:
        holder.all = variables = [tf.Variable(value, name=name) for name, value in start.items()]
        root = tf.train.Checkpoint(model=holder, optimizer=optimizer)
    losses = []
    for step in range(BEFORE + AFTER):
        if step == BEFORE:
            root.write(str(HERE / case))
        with tf.GradientTape() as tape:
            loss = loss_of([tf.convert_to_tensor(variable) for variable in variables], x[step], y[step])
        sources = [variable.value for variable in variables] if is_keras3 else variables
        optimizer.apply_gradients(zip(tape.gradient(loss, sources), variables, strict=True))
        losses.append(float(loss))
    note(case, torch_optimizer, arguments, losses, [variable.numpy() for variable in variables])
    print(case, [name for name, _ in tf.train.list_variables(str(HERE / case))])


legacy = tf_keras.optimizers.legacy
momentum = {"lr": 0.05, "momentum": 0.9}
rmsprop = {"lr": 0.01, "alpha": 0.8, "momentum": 0.6, "eps": 1e-3}
adam = {"lr": 0.02, "betas": [0.85, 0.97], "eps": 1e-3}
# graphs of TensorFlow 1
graph_case("tf1_momentum", lambda: [v1.train.MomentumOptimizer(0.05, 0.9)], "SGD", momentum)
graph_case(
    "tf1_nesterov",
    lambda: [v1.train.MomentumOptimizer(0.05, 0.9, use_nesterov=True)],
    "SGD",
    {**momentum, "nesterov": True},
)
graph_case("tf1_rmsprop", lambda: [v1.train.RMSPropOptimizer(0.01, 0.8, 0.6, 1e-3)], "RMSprop", rmsprop)
graph_case(
    "tf1_rmsprop_centered",
    lambda: [v1.train.RMSPropOptimizer(0.01, 0.8, 0.6, 1e-3, centered=True)],
    "RMSprop",
    {**rmsprop, "centered": True},
)
graph_case("tf1_adagrad", lambda: [v1.train.AdagradOptimizer(0.1)], "Adagrad", {"lr": 0.1, "eps": 0.0})
graph_case(
    "tf1_adam_in_scope",
    lambda: [v1.train.AdamOptimizer(0.02, 0.85, 0.97, 1e-3, name="my_adam")],
    "Adam",
    adam,
    scope="train",
    average="average",
)
graph_case(
    "tf1_adam_twice",
    lambda: [v1.train.AdamOptimizer(0.0), v1.train.AdamOptimizer(0.02, 0.85, 0.97, 1e-3)],
    "Adam",
    adam,
)
# eager ones
object_case("v1_momentum", v1.train.MomentumOptimizer(0.05, 0.9), "SGD", momentum)
object_case("legacy_sgd", legacy.SGD(0.05, 0.9), "SGD", momentum)
object_case(
    "legacy_rmsprop", legacy.RMSprop(0.01, 0.8, 0.6, 1e-3, centered=True), "RMSprop", {**rmsprop, "centered": True}
)
object_case("legacy_adam", legacy.Adam(0.02, 0.85, 0.97, 1e-3, amsgrad=True), "Adam", {**adam, "amsgrad": True})
object_case("keras2_sgd", tf_keras.optimizers.SGD(0.05, 0.9, nesterov=True), "SGD", {**momentum, "nesterov": True})
object_case("keras2_rmsprop", tf_keras.optimizers.RMSprop(0.01, 0.8, 0.6, 1e-3), "RMSprop", rmsprop)
object_case("keras2_adagrad", tf_keras.optimizers.Adagrad(0.1, epsilon=1e-3), "Adagrad", {"lr": 0.1, "eps": 1e-3})
object_case("keras3_sgd", keras.optimizers.SGD(0.05, 0.9), "SGD", momentum, is_keras3=True)
object_case(
    "keras3_rmsprop",
    keras.optimizers.RMSprop(0.01, 0.8, 0.6, 1e-3, centered=True),
    "RMSprop",
    {**rmsprop, "centered": True},
    is_keras3=True,
)
object_case(
    "keras3_adagrad", keras.optimizers.Adagrad(0.1, epsilon=1e-3), "Adagrad", {"lr": 0.1, "eps": 1e-3}, is_keras3=True
)
object_case(
    "keras3_adamw",
    keras.optimizers.AdamW(0.02, 0.1, 0.85, 0.97, 1e-3, amsgrad=True),
    "AdamW",
    {**adam, "weight_decay": 0.1, "amsgrad": True},
    is_keras3=True,
)
np.savez_compressed(HERE / "recorded.npz", x=x, y=y, results=np.array(results, np.float32))
(HERE / "recorded.json").write_text(json.dumps(cases, indent=1) + "\n")
