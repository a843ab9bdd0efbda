"""Matches targets, outputs and masks by task."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mtl_keras.hints import Tensor


class Pairing:
    """Matches targets, outputs and masks by task, whatever structure they have.

    Args:
        network: `keras.Model`. The names of its output layers, if it has some, are
            the tasks of what is given as a list or a single array.
        losses: dict of losses by task; `None` for an output that is not trained.
        task_metrics: dict of lists of metrics by task.
    """

    def __init__(
        self,
        network: keras.Model,
        losses: Mapping[str, Any],
        task_metrics: Mapping[str, Sequence[keras.metrics.Metric]],
    ) -> None:
        self.network = network
        self.given = {"losses": losses, "task_metrics": task_metrics}
        self.trained = [task for task, loss in losses.items() if loss is not None]
        self.tasks = [*dict.fromkeys([*self.trained, *task_metrics])]

    def pair(
        self, targets: Any, outputs: Any, masks: Any
    ) -> dict[str, tuple[Any, Any, Any]]:
        """Matches a batch.

        Args:
            targets, outputs: dicts of tensors by task, or lists or single tensors in
                the order of the network's outputs.
            masks: the same, or one weight per sample for all tasks, `(batch,)`, or
                `None`.

        Returns:
            `{task: (target, output, mask)}` of the tasks with a loss or metrics. The
            mask is `None` if a task has none.

        Raises:
            ValueError: if targets, outputs and masks do not fit one another.
        """
        outputs = self.check_outputs(outputs)
        targets = self._by_task(targets, "targets")
        if masks is None:
            masks = {}
        elif isinstance(masks, (dict, list, tuple)):
            masks = self._by_task(masks, "masks")
        else:  # one weight per sample, for all tasks
            masks = dict.fromkeys(self.tasks, masks)
        self._check_masks(masks, targets)
        missing = [task for task in self.tasks if task not in targets]
        if missing:
            raise ValueError(
                f"The targets lack {missing[0]!r}; they hold "
                f"{', '.join(map(repr, targets))}."
            )
        return {
            task: (targets[task], outputs[task], masks.get(task)) for task in self.tasks
        }

    def complete(self, targets: Any, masks: Any) -> tuple[Any, Any]:
        """Gives every task a mask, of ones where there is none: Keras wants masks for
        all outputs or for none.

        Args:
            targets, masks: arrays, in a structure that `pair` takes.

        Returns:
            Targets and masks, dicts by task; a single mask comes back as it is, and
            so do the targets with it.

        Raises:
            ValueError: as `pair`, and for masks with negative values or NaN.
        """
        if not isinstance(masks, (dict, list, tuple)):
            _check_signs("The mask", masks)
            return targets, masks
        targets = self._by_task(targets, "targets")
        masks = {
            task: np.asarray(mask) if isinstance(mask, (list, tuple)) else mask
            for task, mask in self._by_task(masks, "masks").items()
        }
        self._check_masks(masks, targets)
        for task, mask in masks.items():
            _check_signs(f"The mask of task {task!r}", mask)
        targets = {task: y for task, y in targets.items() if y is not None}
        return targets, {
            task: np.ones(len(target), "float32")
            if masks.get(task) is None
            else masks[task]
            for task, target in targets.items()
        }

    def check_outputs(self, outputs: Any) -> dict[str, Tensor]:
        """The outputs as a dict by task.

        Raises:
            ValueError: if an output with a loss or metrics is missing, or one with a
                loss is not a single tensor.
        """
        outputs = self._by_task(outputs, "outputs")
        for name, tasks in self.given.items():
            unknown = [task for task in tasks if task not in outputs]
            if unknown:
                raise ValueError(
                    f"`{name}` names {unknown[0]!r}, but the outputs of the network "
                    f"are {', '.join(map(repr, outputs))}."
                )
        for task in self.trained:
            if keras.tree.is_nested(outputs[task]):
                raise ValueError(
                    f"The output {task!r} of the network must be one tensor. Received: "
                    f"{type(outputs[task]).__name__}"
                )
        return outputs

    def _by_task(self, values, what):
        if isinstance(values, dict):
            return values
        names = getattr(self.network, "output_names", None)
        if isinstance(values, (list, tuple)):
            return self._by_position(values, what, names)
        if values is not None and len(self.trained) == 1:
            if not names or len(names) == 1:
                return dict.fromkeys(self.trained, values)
        if values is not None and names and len(names) == 1:
            return {names[0]: values}
        raise ValueError(
            f"The {what} must be a dict by task, as in `fit(x, {{task: target}})`. "
            f"Received: {type(values).__name__}"
        )

    def _by_position(self, values, what, names):
        if not names or isinstance(self.network.output, dict):
            raise ValueError(
                f"The {what} must be a dict by task, since the outputs of the "
                f"network have no order. Received: {type(values).__name__}"
            )
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"The network has several outputs named {twice[0]!r}, all from one "
                "layer; give its outputs as a dict by task."
            )
        if len(names) != len(values):
            raise ValueError(
                f"There are {len(values)} {what} for the {len(names)} outputs "
                f"{', '.join(map(repr, names))}."
            )
        return dict(zip(names, values))

    def _check_masks(self, masks, targets):
        unknown = [t for t in masks if t not in self.trained and t not in targets]
        if unknown:
            raise ValueError(
                f"There is a mask for {unknown[0]!r}, which has no loss; the losses "
                f"are for {', '.join(map(repr, self.trained))}."
            )


def _check_signs(whose, mask):
    """Raises `ValueError` for an array that is neither a mask nor weights."""
    if isinstance(mask, np.ndarray) and not (mask >= 0).all():
        raise ValueError(
            f"{whose} has values that are negative or NaN; it must be 0 for elements "
            "that do not count, and above 0 for all others."
        )
