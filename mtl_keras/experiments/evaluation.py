"""Evaluators: each looks at the predictions for a split and comes to a result.

There are two score engines. While it trains, Keras validates with the metrics of the
trainer. The table of a run comes from `evaluate` here, with the same metrics: the
constant predictor, pictures, objects and files need the predictions themselves, which
`keras.Model.evaluate` does not hand out. A test keeps the two equal.
"""

import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np
from tqdm import tqdm

from mtl_keras.data.batches import Batch
from mtl_keras.distribution import count_devices
from mtl_keras.errors import UserError
from mtl_keras.experiments.constant_predictor import ConstantPredictor, check_constants
from mtl_keras.experiments.files import write_whole
from mtl_keras.experiments.problems import Problem
from mtl_keras.experiments.runs import RESULTS
from mtl_keras.figures.objects import ObjectGallery
from mtl_keras.hints import Tensor
from mtl_keras.instances.objects import ObjectScorer
from mtl_keras.serving.predictions import write_predictions
from mtl_keras.tasks import best_metric


class Evaluator(Protocol):
    """What `evaluate` calls with every batch and, at the end, for its result."""

    def update(self, batch: Batch, predictions: dict) -> None:
        """Looks at a batch and the predictions for it, arrays by task."""

    def result(self) -> dict:
        """The result by name; empty for what is written as a file."""


def evaluate(
    network: keras.Model,
    batches: Iterable[Batch],
    evaluators: Sequence[Evaluator],
    batch_size: int,
    bar: Any,
) -> dict[str, Any]:
    """Shows the predictions for all batches to all evaluators.

    Args:
        network: `keras.Model` with a dict of outputs by task.
        batches: iterable of `Batch`.
        evaluators: list of `Evaluator`.
        batch_size: int. That of all batches but the last, which may be smaller.
        bar: progress bar, a `tqdm.tqdm`.

    Returns:
        The results of all evaluators in one dict.
    """
    for batch in batches:
        predictions = predict_batch(network, batch.images, batch_size)
        for evaluator in evaluators:
            evaluator.update(batch, predictions)
        bar.update(len(batch.images))
    return {k: v for evaluator in evaluators for k, v in evaluator.result().items()}


def predict_batch(
    network: keras.Model, images: Tensor, batch_size: int
) -> dict[str, np.ndarray]:
    """Predicts a batch by task; a last, smaller one is filled up to `batch_size`, or
    to what the devices can share evenly, and cut again, since the network would be
    traced anew for its size."""
    batch_size += -batch_size % count_devices()
    filled = np.resize(images, (batch_size, *images.shape[1:]))
    predictions = network.predict_on_batch(filled)
    return {task: maps[: len(images)] for task, maps in predictions.items()}


class MapScores(Evaluator):
    """The metrics of a split, and the IoU of its classes.

    Args:
        task_metrics: dict. Task name to a list of `keras.metrics.Metric`.
    """

    def __init__(
        self, task_metrics: Mapping[str, Sequence[keras.metrics.Metric]]
    ) -> None:
        self.metrics = task_metrics
        self.num_valid = dict.fromkeys(task_metrics, 0)

    def update(self, batch: Batch, predictions: Mapping[str, np.ndarray]) -> None:
        for task, metrics in self.metrics.items():
            mask = batch.masks[task]
            self.num_valid[task] += int(np.sum(np.asarray(mask) > 0))
            for metric in metrics:
                metric.update_state(batch.targets[task], predictions[task], mask)

    def result(self) -> dict[str, Any]:
        """`metrics`, `{task/metric: float}`, `None` for tasks without a valid element,
        `per_class_iou`, `{class name: IoU or None}`, and `confusion`, see
        `EvaluatedMeanIoU`, or `None`."""
        found = {task: m for task, m in self.metrics.items() if self.num_valid[task]}
        return {
            "metrics": {
                f"{task}/{metric.name}": (
                    float(metric.result()) if task in found else None
                )
                for task, metrics in self.metrics.items()
                for metric in metrics
            },
            "per_class_iou": {
                name: iou
                for metrics in found.values()
                for metric in metrics
                if hasattr(metric, "per_class_iou")
                for name, iou in metric.per_class_iou().items()
            },
            "confusion": next(
                (
                    metric.confusion().tolist()
                    for metrics in found.values()
                    for metric in metrics
                    if hasattr(metric, "confusion")
                ),
                None,
            ),
        }


class ConstantBaseline(Evaluator):
    """The metrics of a constant predictor, `constant_predictor`.

    Args:
        task_metrics: as for `MapScores`.
        predictor: `ConstantPredictor`.
    """

    def __init__(
        self,
        task_metrics: Mapping[str, Sequence[keras.metrics.Metric]],
        predictor: ConstantPredictor,
    ) -> None:
        self.scores = MapScores(task_metrics)
        self.predictor = predictor

    def update(
        self, batch: Batch, predictions: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.scores.update(batch, self.predictor.predict(batch.targets))

    def result(self) -> dict[str, Any]:
        return {"constant_predictor": self.scores.result()["metrics"]}


class ObjectEvaluator(Evaluator):
    """Objects from the votes, scored and drawn.

    Args:
        scorer: `instances.objects.ObjectScorer`.
        gallery: `figures.objects.ObjectGallery`.
    """

    def __init__(self, scorer: ObjectScorer, gallery: ObjectGallery) -> None:
        self.scorer = scorer
        self.gallery = gallery

    def update(self, batch: Batch, predictions: Mapping[str, np.ndarray]) -> None:
        assert batch.instance_ids is not None  # loaded where objects are asked for
        decoded = self.scorer.update(batch.ids, predictions, batch.instance_ids)
        self.gallery.update(batch, predictions, decoded)

    def result(self) -> dict[str, Any]:
        # Without labels there is nothing to score.
        has_truth = self.gallery.has_truth
        return {**self.gallery.result(), **(self.scorer.result() if has_truth else {})}


class PredictionWriter(Evaluator):
    """Writes the predicted maps of every frame; see `serving.write_predictions`."""

    def __init__(self, directory: pathlib.Path, label_set: str) -> None:
        self.directory = directory
        self.label_set = label_set

    def update(self, batch: Batch, predictions: Mapping[str, np.ndarray]) -> None:
        write_predictions(self.directory, batch.ids, predictions, self.label_set)

    def result(self) -> dict[str, Any]:
        return {}


def write_constant_predictor(problem: Problem, directory: pathlib.Path) -> None:
    """Keeps the constant predictor of the training split, and what it scores on the
    validation split."""
    predictor = problem.fit_constant_predictor()
    baseline = ConstantBaseline(problem.make_metrics(), predictor)
    for batch in problem.make_batches("val", problem.options.batch_size):
        baseline.update(Batch([], *batch))
    scores = baseline.result()["constant_predictor"]
    absent = {key.partition("/")[0] for key, score in scores.items() if score is None}
    best = best_metric(problem.options.tasks)
    for task in sorted(absent):
        if task == best.partition("/")[0]:
            raise UserError(
                f"The split val has no valid pixel of the task {task}, whose score "
                "chooses the best checkpoint; see to its labels, or leave the task out "
                "of --tasks."
            )
        print(
            f"Note: the split val has no valid pixel of the task {task}, so that its "
            "scores are absent.",
            file=sys.stderr,
        )
    _check_unchanged(directory, predictor.constants, scores)
    write_whole(directory / "constant.json", json.dumps(predictor.constants))
    text = json.dumps(scores, indent=2) + "\n"
    write_whole(directory / f"constant_{RESULTS['val']}", text)


def _check_unchanged(directory, constants, scores):
    """Raises `UserError` if a run that goes on has begun with other labels, in which
    another constant is best or scores otherwise."""
    for name, found in ("constant.json", constants), ("constant_result.json", scores):
        try:
            before = json.loads((directory / name).read_text(encoding="utf-8"))
            is_same = before.keys() == found.keys() and all(
                found[key] == before[key]
                or None not in (found[key], before[key])
                and np.allclose(found[key], before[key], 1e-4)
                for key in found
            )
        except (OSError, ValueError, TypeError, AttributeError):
            continue  # the run begins, or the file is damaged and made again
        if not is_same:
            raise UserError(
                f"The data of {directory} are not those that it began with ({name} is "
                "another); restore them, or train in another directory."
            )


def write_reported_result(
    network: keras.Model, problem: Problem, directory: pathlib.Path
) -> None:
    """Keeps what a network for whole frames scores on the split that tables report, and
    what the constant predictor does."""
    predictor = load_constant_predictor(problem, directory)
    split, batch_size = problem.reported_split, problem.batch_size
    baseline = ConstantBaseline(problem.make_metrics(), predictor)
    evaluators = [MapScores(problem.make_metrics()), baseline]
    batches = (Batch([], *batch) for batch in problem.make_batches(split, batch_size))
    with tqdm(total=problem.count_frames(split), unit="frame", desc=split) as bar:
        results = evaluate(network, batches, evaluators, batch_size, bar)
    for name, key in (
        (f"constant_{RESULTS[split]}", "constant_predictor"),
        (RESULTS[split], "metrics"),
    ):
        write_whole(directory / name, json.dumps(results[key], indent=2) + "\n")


def load_constant_predictor(
    problem: Problem, directory: pathlib.Path
) -> ConstantPredictor:
    """The constant predictor that training left in the run directory."""
    path = pathlib.Path(directory) / "constant.json"
    if not path.exists():
        raise UserError(f"{path} is missing; train the run with train.py first.")
    try:
        constants = json.loads(path.read_text(encoding="utf-8"))
        shape = (*problem.training_size, 1)
        check_constants(constants, problem.options.tasks, problem.num_classes, shape)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it, or train the run again in "
            "another directory."
        ) from error
    return ConstantPredictor(constants, problem.num_classes)
