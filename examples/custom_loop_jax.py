"""Learned loss weights in a training loop of your own, with `jax.jit`.

    python -m examples.custom_loop_jax

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

The bounds of `s` need no code with optimizers of Keras, which keep the constraints of
variables in `stateless_apply` too. With any other optimizer, such as Optax's, clip:
`jnp.clip(s, *weighting.bounds)` after every step.

Not done here: several devices, loss scaling for float16, validation, checkpoints, and
a check that all losses are finite and none is negative (a compiled step cannot raise).
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

from examples import noisy_lines  # noqa: E402
from examples.noisy_lines import LOSSES  # noqa: E402
from mtl_keras import UncertaintyWeighting  # noqa: E402


def main(argv=None):
    seed = noisy_lines.parse_seed(__doc__, argv)
    data = noisy_lines.make_data(seed)
    network = noisy_lines.build_network()
    weighting = UncertaintyWeighting(noisy_lines.LIKELIHOODS)
    start(network, weighting, *noisy_lines.take_sample(data))
    batches = list(make_batches(data, seed))
    train(network, weighting, batches, len(batches))
    sigmas = weighting.sigmas()
    noisy_lines.print_sigmas(sigmas)
    return sigmas


def make_batches(data, seed):
    """Yields `(x, targets, masks)`, all epochs one after another."""
    rng = np.random.default_rng(seed)
    size = len(data[0])
    for _ in range(noisy_lines.EPOCHS):
        order = rng.permutation(size)
        order = order[: size - size % noisy_lines.BATCH_SIZE]
        for rows in order.reshape(-1, noisy_lines.BATCH_SIZE):
            yield jax.tree.map(lambda values: values[rows], data)


def compute_losses(outputs, targets, masks):
    """The loss of every task, and whether it has labels in the batch."""
    losses = {
        task: loss(targets[task], outputs[task], masks[task])
        for task, loss in LOSSES.items()
    }
    return losses, {task: jnp.any(masks[task]) for task in LOSSES}


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
    optimizer.build(network.trainable_variables)
    sigma_optimizer.build(weighting.trainable_variables)
    # The variables that a step changes; it takes their values and returns new ones.
    variables = (
        network.trainable_variables,
        network.non_trainable_variables,
        weighting.trainable_variables,
        optimizer.variables,
        sigma_optimizer.variables,
    )
    fixed = [variable.value for variable in weighting.non_trainable_variables]

    def compute_total(weights, sigmas, statistics, x, targets, masks):
        outputs, statistics, penalties = network.stateless_call(
            weights, statistics, x, training=True, return_losses=True
        )
        losses, present = compute_losses(outputs, targets, masks)
        total, _ = weighting.stateless_call(sigmas, fixed, losses, present=present)
        total += sum(penalties)  # regularizers of the network, if it has any
        return total, (losses, present, statistics)

    compute_gradients = jax.value_and_grad(compute_total, argnums=(0, 1), has_aux=True)

    @jax.jit
    def train_step(state, x, targets, masks):
        weights, statistics, sigmas, slots, sigma_slots = state
        (_, (losses, present, statistics)), (gradients, sigma_gradients) = (
            compute_gradients(weights, sigmas, statistics, x, targets, masks)
        )
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        moved, sigma_slots = sigma_optimizer.stateless_apply(
            sigma_slots, sigma_gradients, sigmas
        )
        sigmas = [
            jnp.where(present[task], new, old)
            for task, new, old in zip(weighting.log_variances, moved, sigmas)
        ]
        return (weights, statistics, sigmas, slots, sigma_slots), losses

    state = tuple([variable.value for variable in group] for group in variables)
    for step, batch in enumerate(batches, 1):
        state, losses = train_step(state, *batch)
        if step % 500 == 0:
            values = ", ".join(f"{task} {loss:.2f}" for task, loss in losses.items())
            print(f"step {step}: losses {values}")

    for group, values in zip(variables, state):
        for variable, value in zip(group, values):
            variable.assign(value)


if __name__ == "__main__":
    main()
