"""The kinds of files that are written for a picture, and of exports of a run.

This module imports nothing heavy, so that `--help` answers at once.
"""

import dataclasses

from mtl_keras.tasks import tasks_of


@dataclasses.dataclass(frozen=True)
class Kind:
    """What there is to know about a kind of file.

    Attributes:
        ending: str, how the file's name ends after that of the picture.
        needs: names of the tasks without which there is no such file.
        shows: names of the tasks that are shown in it if the model has them.
    """

    ending: str
    needs: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()

    @property
    def tasks(self) -> set[str]:
        """The tasks that it is made from."""
        return {*self.needs, *self.shows}


KINDS = {
    "picture": Kind(".png", shows=tasks_of("scenes")),
    "classes": Kind("_labelIds.png", needs=("semantic",)),
    "instances": Kind("_instanceIds.png", needs=("semantic", "instance")),
    "disparity": Kind("_disparity.png", needs=("depth",)),
    "json": Kind(".json", shows=tasks_of("scenes")),
}

# The formats of `serving.export`, and the directories of a run that they are in.
EXPORTS = {
    "tf_saved_model": "saved_model",
    "onnx": "onnx",
    "litert": "litert",
    "litert_float16": "litert_float16",
}
