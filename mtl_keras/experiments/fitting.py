"""Training from wherever a checkpoint was made."""

from collections.abc import Callable, Iterable, Sequence

import keras

from mtl_keras.experiments.checkpoints import Checkpoints, Position
from mtl_keras.training import MultiTaskTrainer


def fit(
    trainer: MultiTaskTrainer,
    make_batches: Callable[[int], Iterable],
    validation: Iterable | None,
    callbacks: Sequence[keras.callbacks.Callback],
    start: Position,
    epochs: int,
    steps_per_epoch: int,
) -> None:
    """Trains to the last epoch, as an uninterrupted training would.

    The rest of an unfinished epoch is a `fit` of its own, of fewer steps.

    Args:
        trainer: compiled.
        make_batches: returns endless training batches, given the number of the first
            step.
        validation: the batches that Keras validates with after every epoch, or `None`.
        callbacks: the last of them restores the checkpoint when training begins.
        start: where the checkpoint was made.
        epochs: int, of the whole training.
        steps_per_epoch: int.
    """

    def train(step, first_epoch, last_epoch):
        trainer.fit(
            make_batches(first_epoch * steps_per_epoch + step),
            initial_epoch=first_epoch,
            epochs=last_epoch,
            steps_per_epoch=steps_per_epoch - step,
            validation_data=validation,
            callbacks=callbacks,
            shuffle=False,  # the batches are
            verbose=0,
        )

    epoch, step = start
    if step == steps_per_epoch:
        _finish_epoch(trainer, validation, callbacks, epoch)
    elif step:
        train(step, epoch, epoch + 1)
    epoch += bool(step)
    if epoch < epochs:
        train(0, epoch, epochs)


def replay(
    trainer: MultiTaskTrainer,
    make_batches: Callable[[int], Iterable],
    checkpoints: Checkpoints,
    step: int,
) -> None:
    """Restores the last checkpoint and trains again up to a later step of its epoch.

    Args:
        trainer: compiled.
        make_batches: as for `fit`.
        checkpoints: that of the run; it saves nothing.
        step: int, the steps of the whole training that are to be done then.
    """
    checkpoints.set_model(trainer)
    checkpoints.on_train_begin()
    first = checkpoints.start.epoch * checkpoints.steps_per_epoch
    first += checkpoints.start.step
    if step > first:
        batches = make_batches(first)
        trainer.fit(batches, steps_per_epoch=step - first, shuffle=False, verbose=0)


def _finish_epoch(trainer, validation, callbacks, epoch):
    """Does what `fit` does after the last step of an epoch."""
    every = keras.callbacks.CallbackList(callbacks, model=trainer, steps=0)
    every.on_train_begin()
    trainer.reset_metrics()
    every.on_epoch_begin(epoch)
    logs = {**callbacks[-1].read_logs()}
    found = trainer.get_metrics_result()
    logs |= {name: float(value) for name, value in found.items() if name != "loss"}
    if validation is not None:
        found = trainer.evaluate(
            validation, callbacks=every, return_dict=True, verbose=0
        )
        logs |= {f"val_{name}": value for name, value in found.items()}
    every.on_epoch_end(epoch, logs)
    every.on_train_end(logs)
