"""Predictions as the benchmark of Cityscapes takes them.

References:
 - [the benchmark's page](https://www.cityscapes-dataset.com/submit/): label ids as PNG,
   instances as masks with scores, both at 2048x1024
"""

import concurrent.futures
import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from mtl_keras.cityscapes import IMAGE_SIZE
from mtl_keras.data.batches import Batch
from mtl_keras.hints import PathLike
from mtl_keras.instances.average_precision import write_prediction
from mtl_keras.png import encode_png
from mtl_keras.serving.answers import make_answer
from mtl_keras.serving.export_directory import SUBMISSION, replace_export
from mtl_keras.workers import count_cores


class SubmissionWriter:
    """Writes every frame of a split for the benchmark; use it in a `with` block.

    `semantic/{frame id}_labelIds.png` holds label ids, `instances/{frame id}.txt` names
    the masks, in `instances/masks`, of the objects with label ids and scores. Each
    folder is what its benchmark takes, as one archive.

    Args:
        path: directory to write; an earlier submission is replaced. It appears at the
            end of the block, complete.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        **clustering: as for `instances.cluster_offsets`.

    Raises:
        UserError: if `path` holds anything but an earlier submission, or cannot be
            written.
    """

    def __init__(self, path: PathLike, label_set: str, **clustering: Any) -> None:
        self.path = pathlib.Path(path)
        self.label_set = label_set
        self.clustering = clustering
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._directory = self._stack.enter_context(
            replace_export(self.path, format=SUBMISSION)
        )
        (self._directory / "semantic").mkdir()
        self._pool = self._stack.enter_context(
            concurrent.futures.ThreadPoolExecutor(count_cores())
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def update(self, batch: Batch, predictions: Mapping[str, np.ndarray]) -> None:
        """Writes the frames of a batch."""
        jobs = [
            (frame_id, {task: maps[i] for task, maps in predictions.items()})
            for i, frame_id in enumerate(batch.ids)
        ]
        for _ in self._pool.map(self._write, jobs):
            pass

    def result(self) -> dict[str, Any]:
        """Nothing: it is files that come of it."""
        return {}

    def _write(self, job):
        frame_id, outputs = job
        logits = outputs["semantic"].astype(np.float32)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        outputs["semantic"] = exponentials / exponentials.sum(axis=-1, keepdims=True)
        answer = make_answer(outputs, IMAGE_SIZE, self.label_set, **self.clustering)
        assert answer.classes is not None  # a submission needs the semantic task
        path = self._directory / "semantic" / f"{frame_id}_labelIds.png"
        path.write_bytes(encode_png(answer.classes))
        if answer.instances is not None:
            scored = [(one["label_id"], one["confidence"]) for one in answer.objects]
            folder = self._directory / "instances"
            write_prediction(folder, frame_id, answer.instances, scored)
