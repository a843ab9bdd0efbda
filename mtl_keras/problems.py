"""What a run learns from and how it is judged: street scenes or small images.

A problem knows the options of a run and offers, in the same way for each kind, its
batches, network, losses, metrics, constant predictor and gallery. Data are opened
when they are first asked for: a network can be built without them.
"""

import functools

import keras

from mtl_keras import data, datasets, metrics, small_images
from mtl_keras.cityscapes import LABEL_SETS
from mtl_keras.errors import UserError
from mtl_keras.losses import L1Norm
from mtl_keras.model import build_network
from mtl_keras.report import Gallery


def open_problem(options, source=""):
    """The problem of a run.

    Args:
        options: `TrainOptions`.
        source: optional, a Cityscapes tree in place of that of the options.
    """
    if options.dataset == "scenes":
        return Scenes(options, source)
    if source:
        raise UserError(
            f"--data names a Cityscapes tree, but this is a run on "
            f"{options.dataset}; leave it out."
        )
    return SmallImages(options)


class Scenes:
    """Street scenes: semantics, votes for instance centres, depth."""

    def __init__(self, options, source=""):
        self.options = options
        self.source = source or options.data
        self.name = self.source or "streets"

    @functools.cached_property
    def builder(self):
        options = self.options
        return datasets.prepare(self.source, options.image_size, options.tasks)

    def count_frames(self, split):
        datasets.check_split(self.builder, split)
        return self.builder.info.splits[split].num_examples

    def make_training_batches(self, first_step):
        options = self.options
        return data.make_training_dataset(
            self.builder,
            options.tasks,
            options.label_set,
            options.batch_size,
            seed=options.seed,
            first_step=first_step,
            flip=options.flip,
            num_frames=options.train_frames,
        )

    def make_batches(self, split, batch_size):
        return data.make_dataset(
            self.builder, split, self.options.tasks, self.options.label_set, batch_size
        )

    def load_ids(self, split):
        return data.load_ids(self.builder, split)

    def load_instance_ids(self, split, batch_size):
        return data.load_instance_ids(self.builder, split, batch_size)

    def build_network(self, weights=None):
        options = self.options
        return build_network(
            architecture=options.architecture,
            backbone=options.backbone,
            image_size=options.image_size,
            num_classes=len(LABEL_SETS[options.label_set]),
            tasks=options.tasks,
            weights=weights,
            decoder=options.decoder,
        )

    def make_losses(self):
        """Cross entropy, `|dy| + |dx|` and absolute error, each averaged over the
        valid pixels, as in the paper (section 4)."""
        losses = {
            "semantic": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "instance": L1Norm(),
            "depth": keras.losses.MeanAbsoluteError(),
        }
        return {task: losses[task] for task in self.options.tasks}

    def make_metrics(self):
        return {
            task: metrics.make_metrics(task, self.options.label_set)
            for task in self.options.tasks
        }

    def fit_constant_predictor(self):
        options = self.options
        batches = data.make_dataset(
            self.builder,
            "train",
            options.tasks,
            options.label_set,
            options.batch_size,
            options.train_frames,
        )
        return metrics.ConstantPredictor.fit(batches, options.label_set)

    def load_constant_predictor(self, values):
        values = {"label_set": self.options.label_set, **values}
        return metrics.ConstantPredictor(**values)

    def make_gallery(self, num_frames):
        return Gallery(num_frames, self.options.label_set)


class SmallImages:
    """Small grey images: their class, and themselves through a narrow code."""

    def __init__(self, options):
        self.options = options
        self.name = options.dataset

    @functools.cached_property
    def splits(self):
        return {
            split: small_images.load_split(self.options.dataset, split)
            for split in small_images.SPLITS
        }

    def count_frames(self, split):
        if split not in self.splits:
            raise UserError(
                f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}."
            )
        return len(self.splits[split][0])

    def _training_images(self):
        return tuple(
            small_images.take_evenly(array, self.options.train_frames)
            for array in self.splits["train"]
        )

    def make_training_batches(self, first_step):
        options = self.options
        return small_images.make_training_dataset(
            *self._training_images(),
            options.tasks,
            options.batch_size,
            seed=options.seed,
            first_step=first_step,
        )

    def make_batches(self, split, batch_size):
        return small_images.make_dataset(
            *self.splits[split], self.options.tasks, batch_size
        )

    def load_ids(self, split):
        return [str(i) for i in range(self.count_frames(split))]

    def build_network(self, weights=None):
        if weights is not None:
            raise UserError(
                "There are no pretrained weights for small images; use --no-pretrained."
            )
        image_size = small_images.IMAGE_SIZES[self.options.dataset]
        return small_images.build_small_network(image_size, tasks=self.options.tasks)

    def make_losses(self):
        return small_images.make_losses(self.options.tasks)

    def make_metrics(self):
        return {task: small_images.make_metrics(task) for task in self.options.tasks}

    def fit_constant_predictor(self):
        return small_images.ConstantPredictor.fit(*self._training_images())

    def load_constant_predictor(self, values):
        return small_images.ConstantPredictor(**values)

    def make_gallery(self, num_frames):
        return small_images.Gallery(num_frames, self.options.dataset)
