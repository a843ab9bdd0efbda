"""What a run learns from: street scenes or small images.

A problem knows the options of a run and offers, in the same way for each kind, its
batches, network, losses, metrics, constant predictor and gallery. Data are opened
when they are first asked for: a network can be built without them.
"""

import abc
import functools
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow_datasets as tfds

from mtl_keras import tasks
from mtl_keras.cityscapes import labels_of
from mtl_keras.data import pipelines, records, small_images
from mtl_keras.data.arrays import is_array_folder
from mtl_keras.errors import UserError
from mtl_keras.experiments.constant_predictor import ConstantPredictor
from mtl_keras.experiments.options import TrainOptions
from mtl_keras.figures.maps import MapGallery, Row, plot_maps
from mtl_keras.figures.small_images import SmallImageGallery
from mtl_keras.hints import Destination
from mtl_keras.model import build_network, build_small_network


def open_problem(options: TrainOptions) -> "Problem":
    """The problem of a run with these `TrainOptions`."""
    return Scenes(options) if options.dataset == "scenes" else SmallImages(options)


class Problem(abc.ABC):
    """What a run learns from. A kind of problem says how its data are opened.

    Args:
        options: `TrainOptions`.
        name: str, what the data are called in titles.
        class_names: sequence of str, by class index.
    """

    def __init__(
        self, options: TrainOptions, name: str, class_names: Sequence[str]
    ) -> None:
        self.options = options
        self.name = name
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)

    def make_losses(self) -> dict[str, keras.losses.Loss]:
        """`{task: keras.losses.Loss}` of the tasks that are trained."""
        return tasks.make_losses(self.options.tasks)

    def make_metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """`{task: [keras.metrics.Metric]}` of the tasks that are trained."""
        return {
            task: tasks.make_metrics(task, self.options.label_set)
            for task in self.options.tasks
        }

    def fit_constant_predictor(self) -> ConstantPredictor:
        """The `ConstantPredictor` of the frames that are trained on."""
        options = self.options
        batches = self.make_batches("train", options.batch_size, options.train_frames)
        return ConstantPredictor.fit(batches, self.num_classes)

    @abc.abstractmethod
    def count_frames(self, split: str) -> int:
        """The frames of a split; `UserError` if there is no such split."""

    @abc.abstractmethod
    def make_training_batches(self, first_step: int) -> Iterable[tuple]:
        """Endless batches `(images, targets, masks)` from a training step on."""

    @abc.abstractmethod
    def make_batches(
        self, split: str, batch_size: int, num_frames: int = 0
    ) -> Iterable[tuple]:
        """Batches of a split in its order; of `num_frames` spread evenly, if any."""

    @abc.abstractmethod
    def load_ids(self, split: str) -> list[str]:
        """The name of each frame of a split, in its order."""

    def load_instance_ids(self, split: str, batch_size: int) -> Iterator[np.ndarray]:
        """Batches `(batch, H, W)` of true instance ids, in the order of the split."""
        raise UserError(f"{self.name} has no instances.")

    @abc.abstractmethod
    def build_network(self, weights: str | None = None) -> keras.Model:
        """`model.build_network` by the options; `weights` as there."""

    @abc.abstractmethod
    def make_gallery(
        self, path: Destination, num_frames: int
    ) -> MapGallery | SmallImageGallery:
        """An evaluator that draws some of `num_frames` frames into the file `path`,
        which may be an open one."""

    @abc.abstractmethod
    def plot_frames(
        self, rows: Sequence[Row], task: str, notes: Sequence[str], path: Destination
    ) -> None:
        """Draws a few frames and what was predicted of a task, with a note on each."""


class Scenes(Problem):
    """Street scenes: semantics, votes for instance centres, depth."""

    def __init__(self, options: TrainOptions) -> None:
        class_names = [label.name for label in labels_of(options.label_set)]
        super().__init__(options, options.data or "streets", class_names)

    @functools.cached_property
    def builder(self) -> tfds.core.DatasetBuilder:
        """The builder of the records, which are made if there are none."""
        options = self.options
        return records.prepare(
            options.data,
            options.image_size,
            options.tasks,
            options.data_dir,
            options.label_set,
            options.sky,
        )

    def make_metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        options = self.options
        masked = options.sky == "masked" or is_array_folder(options.data)
        return {
            task: tasks.make_metrics(task, options.label_set, masked)
            for task in options.tasks
        }

    def count_frames(self, split: str) -> int:
        records.check_split(self.builder, split)
        return self.builder.info.splits[split].num_examples

    def make_training_batches(self, first_step: int) -> Iterable[tuple]:
        options = self.options
        return pipelines.make_training_dataset(
            self.builder,
            options.tasks,
            options.label_set,
            options.batch_size,
            seed=options.seed,
            first_step=first_step,
            flip=options.flip,
            num_frames=options.train_frames,
        )

    def make_batches(
        self, split: str, batch_size: int, num_frames: int = 0
    ) -> Iterable[tuple]:
        options = self.options
        return pipelines.make_dataset(
            self.builder,
            split,
            options.tasks,
            options.label_set,
            batch_size,
            num_frames,
        )

    def load_ids(self, split: str) -> list[str]:
        return pipelines.load_ids(self.builder, split)

    def load_instance_ids(self, split: str, batch_size: int) -> Iterator[np.ndarray]:
        return pipelines.load_instance_ids(self.builder, split, batch_size)

    def build_network(self, weights: str | None = None) -> keras.Model:
        options = self.options
        return build_network(
            architecture=options.architecture,
            backbone=options.backbone,
            image_size=options.image_size,
            num_classes=self.num_classes,
            tasks=options.tasks,
            weights=weights,
            decoder=options.decoder,
        )

    def make_gallery(self, path: Destination, num_frames: int) -> MapGallery:
        return MapGallery(path, num_frames, self.options.label_set)

    def plot_frames(
        self, rows: Sequence[Row], task: str, notes: Sequence[str], path: Destination
    ) -> None:
        label_set = self.options.label_set
        plot_maps(rows, label_set, path, tasks=[task], notes=notes)


class SmallImages(Problem):
    """Small grey images: their class, and themselves through a narrow code."""

    def __init__(self, options: TrainOptions) -> None:
        class_names = small_images.CLASS_NAMES[options.dataset]
        super().__init__(options, options.dataset, class_names)

    @functools.cached_property
    def splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The images and labels of every split, `{split: (images, labels)}`."""
        return {
            split: small_images.load_split(
                self.options.dataset, split, self.options.data_dir
            )
            for split in small_images.SPLITS
        }

    def count_frames(self, split: str) -> int:
        if split not in self.splits:
            raise UserError(
                f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}."
            )
        return len(self.splits[split][0])

    def make_training_batches(self, first_step: int) -> Iterable[tuple]:
        options = self.options
        return small_images.make_training_dataset(
            *self._take("train", options.train_frames),
            options.tasks,
            options.batch_size,
            seed=options.seed,
            first_step=first_step,
        )

    def make_batches(
        self, split: str, batch_size: int, num_frames: int = 0
    ) -> Iterable[tuple]:
        return small_images.make_dataset(
            *self._take(split, num_frames), self.options.tasks, batch_size
        )

    def _take(self, split: str, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        return small_images.take_evenly(*self.splits[split], num_frames)

    def load_ids(self, split: str) -> list[str]:
        return [str(i) for i in range(self.count_frames(split))]

    def build_network(self, weights: str | None = None) -> keras.Model:
        if weights is not None:
            raise UserError(
                "There are no pretrained weights for small images; use --no-pretrained."
            )
        image_size = small_images.IMAGE_SIZES[self.options.dataset]
        return build_small_network(image_size, self.num_classes, self.options.tasks)

    def make_gallery(self, path: Destination, num_frames: int) -> SmallImageGallery:
        return SmallImageGallery(path, num_frames, self.class_names)

    def plot_frames(
        self, rows: Sequence[Row], task: str, notes: Sequence[str], path: Destination
    ) -> None:
        gallery = SmallImageGallery(path, len(rows), self.class_names)
        gallery.rows = [*rows]
        gallery.result()
