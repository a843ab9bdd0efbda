"""The data sets as tfds builders: `cityscapes_frames`, `mtan_arrays` and `streets`.

All hold the same features, so that everything downstream is the same.
"""

import dataclasses
import os
import sys

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from mtl_keras import streets
from mtl_keras.data import arrays, examples, frames
from mtl_keras.errors import UserError
from mtl_keras.workers import WorkerPool

LEFT_OUT = "left_out"  # in the metadata: a sentence for each frame that is not there


@dataclasses.dataclass(eq=False)
class FramesConfig(tfds.core.BuilderConfig):
    """What the records of a builder depend on.

    `image_size` may be `None`, for frames that keep the size of their source.
    `source` is the tree of `cityscapes_frames`, the folder of `mtan_arrays`, or the
    seed of `streets`; `splits` are those of a tree that have records, `skip_bad` says
    whether its frames that cannot be read are left out; `sizes` is the number of
    scenes per split of `streets`; `folders` the folder of each kind of file of
    `mtan_arrays`. `sky` changes no record: it says how the depth of the sky is read
    from them, as `"zero"` or `"masked"`.
    """

    image_size: tuple | None = (128, 256)
    kinds: tuple = frames.LABEL_KINDS
    source: str = ""
    splits: tuple = ()
    sizes: dict = dataclasses.field(default_factory=dict)
    skip_bad: bool = False
    folders: dict = dataclasses.field(default_factory=dict)
    sky: str = "zero"


class _FramesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # which mypy cannot see
    """Features and generation that both builders share."""

    VERSION = tfds.core.Version("1.0.0")
    notified = False  # that frames are stretched; once is enough

    def _info(self):
        height, width = self.builder_config.image_size or (None, None)
        features = {
            "id": tfds.features.Text(),
            "source_width": np.int32,
            "image": tfds.features.Image(
                shape=(height, width, 3), encoding_format="png"
            ),
        }
        for kind in self.builder_config.kinds:
            features[kind] = tfds.features.Image(
                shape=(height, width, 1),
                dtype=np.uint8 if kind == "semantic" else np.uint16,
                encoding_format="png",
            )
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the records keep the order of the frames
            metadata=tfds.core.MetadataDict({LEFT_OUT: []}),
        )

    def _generate_examples(self, split, make_example, jobs):
        image_size = self.builder_config.image_size
        left_out = self.info.metadata[LEFT_OUT]
        is_empty = True
        bar = tqdm(total=len(jobs), unit="frame", desc=f"prepare {split}")
        with WorkerPool(len(jobs)) as pool, bar:
            for example, source_size in pool.map(make_example, jobs):
                bar.update()
                if isinstance(example, UserError):
                    left_out.append(str(example))
                    continue
                is_empty = False
                frame_id = os.fsdecode(example["id"])
                if not self.notified and _reshapes(source_size, image_size):
                    print(
                        f"Note: {frame_id} is {source_size[0]}x{source_size[1]}; "
                        "frames of another shape than "
                        f"{image_size[0]}x{image_size[1]} are stretched to it.",
                        file=sys.stderr,
                    )
                    self.notified = True
                yield example["id"], example
        if is_empty:
            raise UserError(
                f"No frame of the split {split} can be read. The first: {left_out[0]}"
            )


class CityscapesFrames(_FramesBuilder):
    """Frames of an unpacked Cityscapes tree, resized.

    References:
     - [Cityscapes](https://www.cityscapes-dataset.com/dataset-overview/)
    """

    name = "cityscapes_frames"

    def _split_generators(self, dl_manager):
        config = self.builder_config
        left_out = self.info.metadata[LEFT_OUT] if config.skip_bad else None
        listed = {
            split: frames.list_frames(config.source, split, config.kinds, left_out)
            for split in config.splits
        }
        read = (
            examples.read_example_or_error if config.skip_bad else examples.read_example
        )
        return {
            split: self._generate_examples(
                split, read, [(f, config.image_size, config.kinds) for f in files]
            )
            for split, files in listed.items()
            if files
        }


class MtanArrays(_FramesBuilder):
    """Cityscapes as the arrays of MTAN's protocol; see `data.arrays`."""

    name = "mtan_arrays"

    def _split_generators(self, dl_manager):
        config = self.builder_config
        listed = {
            split: arrays.list_arrays(config.source, split, config.folders)
            for split in arrays.SPLITS
        }
        return {
            split: self._generate_examples(
                split,
                examples.read_array_example,
                [(f, config.image_size) for f in files],
            )
            for split, files in listed.items()
            if files
        }


class Streets(_FramesBuilder):
    """Street scenes rendered by `mtl_keras.streets.scenes`."""

    name = "streets"

    def _split_generators(self, dl_manager):
        config = self.builder_config
        return {
            split: self._generate_examples(
                split,
                examples.render_example,
                [
                    (
                        streets.frame_id(index),
                        streets.scene_seed(int(config.source), split, index),
                        config.image_size,
                    )
                    for index in range(size)
                ],
            )
            for split, size in config.sizes.items()
        }


def _reshapes(source_size, image_size):
    if image_size is None:
        return False
    return source_size[0] * image_size[1] != source_size[1] * image_size[0]
