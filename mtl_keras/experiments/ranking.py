"""The frames of a split that a network is best and worst at."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mtl_keras.data.batches import Batch
from mtl_keras.experiments.evaluation import predict_batch
from mtl_keras.figures.maps import Row
from mtl_keras.tasks import METRICS, main_metric

RANKS = ("best", "median", "worst")


class FrameRanking:
    """Scores every frame by the main metric of each task.

    Args:
        task_metrics: dict. Task name to a list of `keras.metrics.Metric`, of which the
            first one is taken.
    """

    def __init__(
        self, task_metrics: Mapping[str, Sequence[keras.metrics.Metric]]
    ) -> None:
        self.metrics = {task: metrics[0] for task, metrics in task_metrics.items()}
        self.scores: dict[str, dict[int, float]] = {task: {} for task in task_metrics}
        self.num_frames = 0

    def update(self, batch: Batch, predictions: Mapping[str, np.ndarray]) -> None:
        """Scores the frames of a batch; a task counts where it has a valid element."""
        for i in range(len(batch.images)):
            one = slice(i, i + 1)
            for task, metric in self.metrics.items():
                if np.any(batch.masks[task][one]):
                    metric.reset_state()
                    metric.update_state(
                        batch.targets[task][one],
                        predictions[task][one],
                        batch.masks[task][one],
                    )
                    self.scores[task][self.num_frames + i] = float(metric.result())
        self.num_frames += len(batch.images)

    def result(self) -> dict[str, Any]:
        """`ranking`, `{task: {rank: (index of the frame, score)}}` for the ranks
        `"best"`, `"median"` and `"worst"`; without the tasks that have no score."""
        ranking = {}
        for task, scores in self.scores.items():
            if scores:
                sign = -1 if METRICS[main_metric(task)].higher_is_better else 1
                order = sorted(scores, key=lambda index: sign * scores[index])
                chosen = order[0], order[(len(order) - 1) // 2], order[-1]
                ranking[task] = {
                    rank: (index, scores[index]) for rank, index in zip(RANKS, chosen)
                }
        return {"ranking": ranking}


def load_rows(
    network: keras.Model,
    batches: Iterable[Batch],
    indices: Iterable[int],
    batch_size: int,
) -> dict[int, tuple[str, Row]]:
    """The chosen frames of a split with what a network predicts for them.

    Args:
        network: `keras.Model` with a dict of outputs by task.
        batches: those of the split.
        indices: places of the frames in the split.
        batch_size: int. That of all batches but the last.

    Returns:
        `{index: (frame id, Row)}`.
    """
    wanted, rows, first = set(indices), {}, 0
    for batch in batches:
        here = [i for i in range(len(batch.images)) if first + i in wanted]
        if here:
            predictions = predict_batch(network, batch.images, batch_size)
            for i in here:
                rows[first + i] = batch.ids[i], Row.of(batch, predictions, i)
        first += len(batch.images)
    return rows
