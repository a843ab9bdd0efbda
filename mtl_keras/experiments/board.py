"""What a run shows in TensorBoard beside Keras's own curves by epoch."""

import dataclasses
import io
import math
import pathlib
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.data.batches import Batch
from mtl_keras.experiments.evaluation import predict_batch
from mtl_keras.experiments.problems import Problem
from mtl_keras.figures.markdown import format_table

NUM_POINTS = 500  # of a curve by step, at most
NUM_GALLERIES = 5  # pictures of a training, at most one more for the last epoch
NUM_FRAMES = 4  # of the validation split in a picture


class StepBoard(keras.callbacks.Callback):
    """Writes by step: sigmas and weights, the learning rate, images per second; every
    few epochs the predictions for the same few validation frames; once the options.

    Args:
        directory: that of the run; events go to `tensorboard/steps` in it.
        problem: what the run learns from.
        epochs: int, of the whole run.
        steps_per_epoch: int.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        problem: Problem,
        epochs: int,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.directory = directory / "tensorboard" / "steps"
        self.problem = problem
        self.interval = math.ceil(epochs * steps_per_epoch / NUM_POINTS)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.writer = tf.summary.create_file_writer(str(self.directory))
        options = dataclasses.asdict(self.problem.options)
        table = format_table(options.items(), ["option", "value"])
        with self.writer.as_default():
            tf.summary.text("options", table, step=0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.first_step = (epoch + 1) * self.steps_per_epoch - self.params["steps"]
        self.marked = self.first_step, time.perf_counter()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        step = self.first_step + batch + 1
        if step % self.interval:
            return
        (since, started), now = self.marked, time.perf_counter()
        self.marked = step, now
        images = (step - since) * self.problem.options.batch_size
        with self.writer.as_default(step):
            tf.summary.scalar("images per second", images / (now - started))
            rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            tf.summary.scalar("learning rate", rate)
            weighting = self.model.weighting
            for task, weight in weighting.task_weights().items():
                tf.summary.scalar(f"weight/{task}", weight)
            if hasattr(weighting, "sigmas"):
                for task, sigma in weighting.sigmas().items():
                    tf.summary.scalar(f"sigma/{task}", sigma)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        done = epoch + 1
        if done % math.ceil(self.epochs / NUM_GALLERIES) and done < self.epochs:
            return
        picture = tf.io.decode_png(self._draw_gallery())
        with self.writer.as_default(done * self.steps_per_epoch):
            tf.summary.image("validation frames", picture[None])

    def _draw_gallery(self):
        """The PNG bytes of the predictions for a few validation frames."""
        num_frames = min(NUM_FRAMES, self.problem.count_frames("val"))
        file = io.BytesIO()
        gallery = self.problem.make_gallery(file, num_frames)
        network = self.problem.of_whole_frames(self.model.network)
        batch_size = min(num_frames, self.problem.batch_size)
        for content in self.problem.make_batches("val", batch_size, num_frames):
            batch = Batch([], *content)
            images = np.asarray(batch.images)  # for networks on every backend
            gallery.update(batch, predict_batch(network, images, len(images)))
        gallery.result()
        return file.getvalue()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.writer.close()
