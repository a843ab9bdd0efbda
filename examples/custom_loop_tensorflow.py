"""Learned loss weights in a training loop of your own, with `tf.GradientTape`.

    python -m examples.custom_loop_tensorflow

`MultiTaskTrainer` is the short way. Without it the loop has to do itself:

- Average each loss over its labels, not over the batch: `MaskedLoss`.
- Tell the weighting which tasks have labels in the batch: `present`. A task without
  any adds neither loss nor regularizer, but the optimizer's momentum would still move
  its `s`, so this is put back.
- Let every `s` start where it belongs, at the equilibrium of its task's loss:
  `weighting.start`, here with the losses of a sample that has labels of every task.
  (The first batch is too small. By luck its loss may be near 0, and an `s` that starts
  too low takes long to return.) Or choose the starts, with `initial_log_variance`.
- Give the sigmas a learning rate of their own. Adam moves a weight by at most the
  learning rate per step, too little for a log variance that has far to go.
- Decay no `s`. Here nothing is decayed; with `weight_decay`, leave it out for the
  sigmas' optimizer.

The bounds of `s` need no code: they are a constraint of the variables, and optimizers
of Keras keep it.

Not done here: several devices, loss scaling for float16, validation, checkpoints, and
a check that all losses are finite and none is negative (a compiled step cannot raise).
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"  # before Keras is imported

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from examples import noisy_lines  # noqa: E402
from examples.noisy_lines import LOSSES  # noqa: E402
from mtl_keras import UncertaintyWeighting  # noqa: E402


def main(argv=None):
    seed = noisy_lines.parse_seed(__doc__, argv)
    data = noisy_lines.make_data(seed)
    network = noisy_lines.build_network()
    weighting = UncertaintyWeighting(noisy_lines.LIKELIHOODS)
    start(network, weighting, *noisy_lines.take_sample(data))
    batches = make_batches(data, seed)
    train(network, weighting, batches, len(batches))
    sigmas = weighting.sigmas()
    noisy_lines.print_sigmas(sigmas)
    return sigmas


def make_batches(data, seed):
    """A data set of `(x, targets, masks)`, all epochs one after another."""
    dataset = tf.data.Dataset.from_tensor_slices(data)
    dataset = dataset.shuffle(len(data[0]), seed)
    dataset = dataset.batch(noisy_lines.BATCH_SIZE, drop_remainder=True)
    return dataset.repeat(noisy_lines.EPOCHS)


def compute_losses(outputs, targets, masks):
    """The loss of every task, and whether it has labels in the batch."""
    losses = {
        task: loss(targets[task], outputs[task], masks[task])
        for task, loss in LOSSES.items()
    }
    return losses, {task: tf.reduce_any(masks[task]) for task in LOSSES}


def start(network, weighting, x, targets, masks):
    """Starts every `s` at the equilibrium of its task's loss on a sample."""
    losses, _ = compute_losses(network(x), targets, masks)
    weighting.start(losses)


def train(network, weighting, batches, steps):
    """Trains `network` and `weighting` together, on `steps` batches."""
    # Two optimizers: one rate for the network, one for the sigmas. Both fall to 0, so
    # that the sigmas come to rest.
    optimizer, sigma_optimizer = (
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
        for rate in (noisy_lines.LEARNING_RATE, noisy_lines.SIGMA_LEARNING_RATE)
    )
    # Their variables cannot be made in a compiled function.
    optimizer.build(network.trainable_variables)
    sigma_optimizer.build(weighting.trainable_variables)

    @tf.function
    def train_step(x, targets, masks):
        weights, sigmas = network.trainable_variables, weighting.trainable_variables
        with tf.GradientTape() as tape:
            outputs = network(x, training=True)
            losses, present = compute_losses(outputs, targets, masks)
            total = weighting(losses, present=present)
            total += sum(network.losses)  # its regularizers, if it has any
        gradients, sigma_gradients = tape.gradient(total, [weights, sigmas])
        optimizer.apply(gradients, weights)
        log_variances = weighting.log_variances
        before = {task: tf.identity(s.value) for task, s in log_variances.items()}
        sigma_optimizer.apply(sigma_gradients, sigmas)
        for task, s in log_variances.items():
            s.assign(tf.where(present[task], s.value, before[task]))
        return losses

    for step, batch in enumerate(batches, 1):
        losses = train_step(*batch)
        if step % 500 == 0:
            values = ", ".join(f"{task} {loss:.2f}" for task, loss in losses.items())
            print(f"step {step}: losses {values}")


if __name__ == "__main__":
    main()
