"""What a training is validated on, and how, if it is on crops of frames."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras

from mtl_keras.data import pipelines
from mtl_keras.distribution import count_devices
from mtl_keras.experiments.problems import Problem
from mtl_keras.training import MultiTaskTrainer


def make_validation_batches(problem: Problem) -> Iterable[tuple]:
    """The batches of the split val, with masked elements at their end where the devices
    could not share one evenly otherwise."""
    batches = problem.make_batches("val", problem.batch_size)
    num_devices = count_devices()
    return batches if num_devices == 1 else pipelines.fill_up(batches, num_devices)


class WholeFrameValidation(keras.callbacks.Callback):
    """Adds to the logs of an epoch what Keras's own validation would, with the network
    for whole frames. It has to come before the callbacks that read them.

    Args:
        problem: what the run learns from.
        watch: called with the number of every batch.
    """

    def __init__(self, problem: Problem, watch: Callable[[int], None]) -> None:
        super().__init__()
        self.problem = problem
        self._watcher = keras.callbacks.Callback()
        self._watcher.on_test_batch_end = lambda batch, logs=None: watch(batch)

    @functools.cached_property
    def _trainer(self):
        trainer = MultiTaskTrainer(
            self.problem.of_whole_frames(self.model.network),
            self.problem.make_losses(),
            self.model.weighting,
            self.problem.make_metrics(),
        )
        trainer.compile(jit_compile=self.model.jit_compile)
        return trainer

    @functools.cached_property
    def _batches(self):
        return make_validation_batches(self.problem)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        trainer = self._trainer
        self.problem.of_whole_frames(self.model.network)  # takes over the weights
        found = trainer.evaluate(
            self._batches, callbacks=[self._watcher], return_dict=True, verbose=0
        )
        if logs is not None:
            logs |= {f"val_{name}": value for name, value in found.items()}
