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
from mtl_keras.data.augmentation import Augmentation
from mtl_keras.errors import UserError
from mtl_keras.experiments.constant_predictor import ConstantPredictor
from mtl_keras.experiments.options import TrainOptions
from mtl_keras.figures.maps import MapGallery, Row, plot_maps
from mtl_keras.figures.small_images import SmallImageGallery
from mtl_keras.hints import Destination, Size
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
    def find_training_frames(self, step: int) -> list[str]:
        """The names of the frames of a training batch, counted from 0."""

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

    @property
    def reported_split(self) -> str:
        """The split whose scores a table reports: one on which nothing was chosen, if
        the data have one with labels."""
        return "val"

    @property
    def training_size(self) -> Size:
        """`(height, width)` of the images of a training batch."""
        return self.options.image_size

    @property
    def has_crops(self) -> bool:
        """Whether training batches hold crops, and not whole frames."""
        return False

    @property
    def batch_size(self) -> int:
        """Whole frames at a time that take no more memory than a training batch."""
        return self.options.batch_size

    @abc.abstractmethod
    def build_network(
        self, weights: str | None = None, image_size: Size | None = None
    ) -> keras.Model:
        """The network by the options, for whole frames unless an image size is given;
        `weights` as in `model.build_network`."""

    def of_whole_frames(self, network: keras.Model) -> keras.Model:
        """The network for whole frames, with the weights of one that may be for crops
        of them; there is one, which takes over the weights with every call."""
        return network

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
        self._builders: dict[str, tfds.core.DatasetBuilder] = {}

    def open_split(self, split: str) -> tuple[tfds.core.DatasetBuilder, str]:
        """The builder of a split, whose records are made if there are none, and what
        the split is called there. Each split has records of its own, so that no
        command makes more than it reads."""
        options = self.options
        name = options.train_split if split == "train" else split
        if name not in self._builders:
            self._builders[name] = records.prepare(
                options.data,
                options.image_size if options.records == "resized" else None,
                options.tasks,
                options.data_dir,
                options.label_set,
                options.sky,
                splits=name.split("+"),
                skip_bad=options.skip_bad,
            )
        return self._builders[name], name

    @property
    def reported_split(self) -> str:
        return "val" if self.options.data else "test"

    @property
    def training_size(self) -> Size:
        return self.options.crop or self.options.image_size

    @property
    def has_crops(self) -> bool:
        return self.training_size != self.options.image_size

    @property
    def batch_size(self) -> int:
        share = np.prod(self.training_size) / np.prod(self.options.image_size)
        return max(1, int(self.options.batch_size * share))

    def make_metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        options = self.options
        masked = options.sky == "masked" or is_array_folder(options.data)
        return {
            task: tasks.make_metrics(task, options.label_set, masked)
            for task in options.tasks
        }

    def count_frames(self, split: str) -> int:
        builder, name = self.open_split(split)
        return builder.info.splits[name].num_examples

    def make_training_batches(self, first_step: int) -> Iterable[tuple]:
        options = self.options
        builder, name = self.open_split("train")
        return pipelines.make_training_dataset(
            builder,
            options.tasks,
            options.label_set,
            options.batch_size,
            seed=options.seed,
            first_step=first_step,
            augmentation=Augmentation(
                options.flip, options.crop or None, options.scales, options.jitter
            ),
            num_frames=options.train_frames,
            split=name,
            image_size=options.image_size,
        )

    def find_training_frames(self, step: int) -> list[str]:
        options = self.options
        builder, name = self.open_split("train")
        return pipelines.load_training_ids(
            builder,
            options.batch_size,
            options.seed,
            step,
            options.train_frames,
            name,
            options.image_size,
        )

    def make_batches(
        self, split: str, batch_size: int, num_frames: int = 0
    ) -> Iterable[tuple]:
        options = self.options
        builder, name = self.open_split(split)
        return pipelines.make_dataset(
            builder,
            name,
            options.tasks,
            options.label_set,
            batch_size,
            num_frames,
            options.image_size,
        )

    def load_ids(self, split: str) -> list[str]:
        return pipelines.load_ids(*self.open_split(split))

    def load_instance_ids(self, split: str, batch_size: int) -> Iterator[np.ndarray]:
        builder, name = self.open_split(split)
        image_size = self.options.image_size
        return pipelines.load_instance_ids(builder, name, batch_size, image_size)

    def build_network(
        self, weights: str | None = None, image_size: Size | None = None
    ) -> keras.Model:
        options = self.options
        return build_network(
            architecture=options.architecture,
            backbone=options.backbone,
            image_size=image_size or options.image_size,
            num_classes=self.num_classes,
            tasks=options.tasks,
            weights=weights,
            decoder=options.decoder,
        )

    @functools.cached_property
    def _whole_network(self):
        return self.build_network()

    def of_whole_frames(self, network: keras.Model) -> keras.Model:
        if tuple(network.input.shape[1:3]) == tuple(self.options.image_size):
            return network
        self._whole_network.set_weights(network.get_weights())
        return self._whole_network

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

    def find_training_frames(self, step: int) -> list[str]:
        options, (images, _) = self.options, self.splits["train"]
        numbers = np.arange(len(images), dtype=np.int32)
        batches = small_images.make_training_dataset(
            *small_images.take_evenly(images, numbers, options.train_frames),
            ("class",),
            options.batch_size,
            seed=options.seed,
            first_step=step,
        )
        _, targets, _ = next(iter(batches))
        return [str(number) for number in targets["class"].numpy()]

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

    @property
    def training_size(self) -> Size:
        return small_images.IMAGE_SIZES[self.options.dataset]

    def build_network(
        self, weights: str | None = None, image_size: Size | None = None
    ) -> keras.Model:
        if weights is not None:
            raise UserError(
                "There are no pretrained weights for small images; use --no-pretrained."
            )
        image_size = image_size or self.training_size
        return build_small_network(image_size, self.num_classes, self.options.tasks)

    def make_gallery(self, path: Destination, num_frames: int) -> SmallImageGallery:
        return SmallImageGallery(path, num_frames, self.class_names)

    def plot_frames(
        self, rows: Sequence[Row], task: str, notes: Sequence[str], path: Destination
    ) -> None:
        gallery = SmallImageGallery(path, len(rows), self.class_names)
        gallery.rows = [*rows]
        gallery.result()
