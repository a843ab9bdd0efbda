"""Runs the step again at which the loss of a run was no longer finite.

Starts from the last checkpoint and trains up to that step, which on the same machine
comes out as it did, then looks at the batch that the run has kept of it: what is not
finite in targets, predictions, losses and weights.
"""

import pathlib

from mtl_keras.commands.console import start_tensorflow
from mtl_keras.errors import UserError
from mtl_keras.experiments.options import TrainOptions, read_options


def replay(run: str, verbose: bool = False) -> None:
    """Prints a table of the tasks in that step, and what the step does to the weights.

    Args:
        run: the directory of the run.
        verbose: bool, whether to show what libraries log.

    Raises:
        UserError: if the run has not diverged, or its files are damaged.
    """
    directory = pathlib.Path(run)
    options = read_options(TrainOptions, directory / "options.json")
    start_tensorflow(verbose)

    import keras

    from mtl_keras.experiments import fitting, setup
    from mtl_keras.experiments.callbacks import make_callbacks
    from mtl_keras.experiments.divergence import BATCH, read_batch
    from mtl_keras.experiments.problems import open_problem
    from mtl_keras.figures.markdown import format_table

    path = directory / BATCH
    if not path.exists():
        raise UserError(f"{path} is missing: the loss of {directory} was finite.")
    step, frames, batch = read_batch(path)
    keras.utils.set_random_seed(options.seed)  # as train.py does
    problem = open_problem(options)
    epochs, steps = setup.plan_epochs(options, problem.count_frames("train"))
    trainer = setup.build_trainer(problem, None, problem.training_size, steps)
    trainer.compile(
        setup.build_optimizer(options, epochs * steps),
        jit_compile=setup.choose_jit(options),
    )
    *_, checkpoints = make_callbacks(directory, problem, epochs, steps)
    start = checkpoints.start
    first = start.epoch * steps + start.step
    if first >= step:
        raise UserError(
            f"The last checkpoint of {directory} was made after step {first}, so that "
            f"step {step} cannot be run again; its batch is in {path}."
        )
    print(
        f"{directory} has a checkpoint after step {first}; training up to {step - 1}."
    )
    fitting.replay(trainer, problem.make_training_batches, checkpoints, step - 1)
    print(f"\nStep {step}, frames: {', '.join(frames) or 'unknown'}\n")
    columns = ["task", "valid", "target", "prediction", "loss", "weight"]
    print(format_table(_look_at(trainer, batch), columns))
    trainer.train_on_batch(*batch)
    spoiled = [
        weight.path for weight in trainer.trainable_variables if not _is_finite(weight)
    ]
    total = len(trainer.trainable_variables)
    print(f"\nAfter it, {len(spoiled)} of {total} weights are not finite.")


def _look_at(trainer, batch):
    """Rows about the tasks of a batch, of what training sees."""
    import keras
    import numpy as np

    from mtl_keras.losses import sum_loss

    images, targets, masks = batch
    outputs = trainer.network(images, training=True)
    weights = trainer.weighting.task_weights()
    for task, loss in trainer.task_losses.items():
        target, mask, output = targets[task], masks[task], outputs[task]
        valid = mask > 0
        seen = [np.asarray(target), keras.ops.convert_to_numpy(output)]
        ranges = [_describe(values[valid]) for values in seen]
        total, weight, _ = sum_loss(loss, target, output, mask, task)
        value = float(total) / max(float(weight), 1.0)
        count = f"{valid.sum()} of {valid.size}"
        yield [task, count, *ranges, value, weights.get(task)]


def _describe(values):
    import numpy as np

    finite = np.isfinite(values)
    if not finite.all():
        return f"{(~finite).sum()} not finite"
    return f"{values.min():.4g} to {values.max():.4g}" if values.size else "none"


def _is_finite(variable):
    import keras

    return bool(keras.ops.all(keras.ops.isfinite(variable)))
