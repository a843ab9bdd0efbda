"""Learned loss weights in a training loop of your own, with `torch.optim`.

    python -m examples.custom_loop_torch

`MultiTaskTrainer` is the short way. Without it the loop has to do itself:

- Average each loss over its labels, not over the batch: `MaskedLoss`.
- Tell the weighting which tasks have labels in the batch: `present`. A task without
  any adds neither loss nor regularizer, but the optimizer's momentum would still move
  its `s`, so this is put back.
- Let every `s` start where it belongs, at the equilibrium of its task's loss:
  `weighting.start`, here with the losses of a sample that has labels of every task.
  (The first batch is too small. By luck its loss may be near 0, and an `s` that starts
  too low takes long to return.) Or choose the starts, with `initial_log_variance`.
- Give the sigmas a parameter group of their own. Its learning rate is larger, since
  Adam moves a weight by at most the learning rate per step, too little for a log
  variance that has far to go; and it has no weight decay, which would pull every sigma
  towards 1.
- Keep every `s` within `weighting.bounds`, which `torch.optim` knows nothing of.

Not done here: several devices, loss scaling for float16, validation, checkpoints, and
a check that all losses are finite. (A negative loss raises `ValueError`.)
"""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

import keras  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader, StackDataset  # noqa: E402

from examples import noisy_lines  # noqa: E402
from examples.noisy_lines import LOSSES  # noqa: E402
from mtl_keras import UncertaintyWeighting  # noqa: E402

WEIGHT_DECAY = 1e-4


def main(argv=None):
    seed = noisy_lines.parse_seed(__doc__, argv)
    data = noisy_lines.make_data(seed)
    network = noisy_lines.build_network()
    weighting = UncertaintyWeighting(noisy_lines.LIKELIHOODS)
    start(network, weighting, *noisy_lines.take_sample(data))
    batches = make_batches(data, seed)
    train(network, weighting, batches, noisy_lines.EPOCHS)
    sigmas = weighting.sigmas()
    noisy_lines.print_sigmas(sigmas)
    return sigmas


def make_batches(data, seed):
    """A loader of `(x, targets, masks)`, in another order every epoch."""
    x, targets, masks = data
    return DataLoader(
        StackDataset(x, StackDataset(**targets), StackDataset(**masks)),
        noisy_lines.BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )


def compute_losses(outputs, targets, masks):
    """The loss of every task, and whether it has labels in the batch."""
    losses = {
        task: loss(targets[task], outputs[task], masks[task])
        for task, loss in LOSSES.items()
    }
    return losses, {task: masks[task].any() for task in LOSSES}


def start(network, weighting, x, targets, masks):
    """Starts every `s` at the equilibrium of its task's loss on a sample."""
    losses, _ = compute_losses(network(x), targets, masks)
    weighting.start(losses)


def train(network, weighting, batches, epochs):
    """Trains `network` and `weighting` together, `epochs` times on all batches."""
    kernels = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    sigmas = [s.value for s in weighting.log_variances.values()]
    sigma_rate = noisy_lines.SIGMA_LEARNING_RATE
    optimizer = torch.optim.AdamW(
        [
            {"params": kernels, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
            {"params": sigmas, "weight_decay": 0.0, "lr": sigma_rate},
        ],
        lr=noisy_lines.LEARNING_RATE,
    )
    # The rates fall to 0, so that the sigmas come to rest.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, epochs * len(batches)
    )
    for epoch in range(1, epochs + 1):
        for batch in batches:
            losses = train_step(network, weighting, optimizer, *batch)
            schedule.step()
        values = ", ".join(f"{task} {loss:.2f}" for task, loss in losses.items())
        print(f"epoch {epoch}: losses {values}")


def train_step(network, weighting, optimizer, x, targets, masks):
    """One step on one batch; returns the losses before it, detached."""
    x, targets, masks = keras.tree.map_structure(  # to the device of Keras
        keras.ops.convert_to_tensor, (x, targets, masks)
    )
    outputs = network(x, training=True)
    losses, present = compute_losses(outputs, targets, masks)
    total = weighting(losses, present=present)
    total = total + sum(network.losses)  # its regularizers, if it has any
    optimizer.zero_grad()
    total.backward()
    log_variances = {task: s.value for task, s in weighting.log_variances.items()}
    before = {task: s.detach().clone() for task, s in log_variances.items()}
    optimizer.step()
    with torch.no_grad():
        for task, s in log_variances.items():
            s.copy_(torch.where(present[task], s, before[task]))
            s.clamp_(*weighting.bounds)
    return {task: loss.detach() for task, loss in losses.items()}


if __name__ == "__main__":
    main()
