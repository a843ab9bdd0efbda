"""A `keras.Model` that trains a multi-output network under a loss weighting."""

import contextlib
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from mtl_keras import sigma_steps
from mtl_keras.distribution import (
    mean_over_replicas,
    num_replicas,
    sum_over_replicas,
)
from mtl_keras.hints import PathLike, Tensor
from mtl_keras.losses import (
    align,
    as_float,
    first_line,
    get_loss,
    serialize_loss,
    sum_loss,
)
from mtl_keras.metrics import (
    Lowest,
    build_metrics,
    check_metrics,
    check_metrics_built,
    get_metrics,
)
from mtl_keras.optimizers import DECAYS, WeightingOptimizer, check_replicated
from mtl_keras.pairing import Pairing
from mtl_keras.weighting import UncertaintyWeighting, check_loss


@keras.saving.register_keras_serializable(package="mtl_keras")
class MultiTaskTrainer(keras.Model):
    """Trains a multi-output network; the weighting of its losses is part of it.

    One step computes the loss of every task, lets `weighting` add them up, and
    updates network and weighting together. `fit`, `evaluate`, `predict` and every
    callback are Keras's own. The network itself is not changed and can be saved and
    exported without the weighting; `export` does so.

    `fit` and `evaluate` take `(x, targets)` or `(x, targets, masks)`, as arrays or as
    a data set. `targets` and `masks` are dicts by task, or lists or single arrays in
    the order of the outputs, if these have names. A mask is the sample weight of its
    task: per element, as in `(batch, height, width)`, or per sample, `(batch,)`. It
    may have an additional last axis of 1, and any dtype. A task may have no mask.

    Every loss is averaged over the valid elements of its task, whatever its reduction,
    and over all replicas of a `tf.distribute` strategy together. Masks that layers
    carry along (`mask_zero`) and the `ignore_class` of a loss apply as well. What
    lies under a mask, NaN included, reaches neither network nor loss nor metrics. A
    task without a valid element in a batch adds nothing to its total, and the task's
    `s` stays where it is.

    The logs hold `loss` (the total, including the network's regularizers), and for
    each task `{task}/loss`, `{task}/{metric}` and, in training, `{task}/sigma` and
    `{task}/weight` as they are after the last step. In training, `loss` is the mean
    over the samples. In evaluation it is what the weighting makes of the losses of the
    whole split; neither they nor it depend on how the split is cut into batches.

    Args:
        network: `keras.Model`, with a dict of outputs by task, or with a list or a
            single output, which then go by the names of the output layers (any name
            will do for a single output with a single loss).
        losses: dict. Task name to a `keras.losses.Loss`, the name of one, a function
            of targets and predictions that returns a value per element, or anything
            called as `loss(y_true, y_pred, sample_weight)` that returns a scalar
            mean. Outputs without a loss, or with `None` for it, are not trained.
        weighting: `UncertaintyWeighting`, `FixedWeighting` or one of
            `mtl_keras.weightings`, with the same tasks, or any layer called as
            `weighting(losses, present=present)`. Its method `update(losses, present)`,
            if it has one, is called before that in every training step.
        task_metrics: optional dict. Task name to a metric or a list of them, each a
            `keras.metrics.Metric`, its name or a function.
        sigma_learning_rate_factor: float. The learning rate of the weights of
            `weighting`, in units of the optimizer's. Adam moves a weight by at most one
            learning rate per step, too slow for a log variance that may have to
            travel several units. Defaults to `10.0`.
        **kwargs: passed on to `keras.Model`.

    Call arguments:
        x: what the network takes.
        training: optional bool, passed on to the network.

    Returns:
        The outputs of the network.

    Raises:
        ValueError: if the tasks of network, losses, weighting, metrics and data do not
            match; for a mask or loss of the wrong shape; and for a negative loss under
            learned weights.

    Example:
    >>> inputs = keras.Input((4,))
    >>> network = keras.Model(inputs, {
    ...     "age": keras.layers.Dense(1)(inputs),
    ...     "kind": keras.layers.Dense(3)(inputs),
    ... })
    >>> from mtl_keras import UncertaintyWeighting
    >>> trainer = MultiTaskTrainer(
    ...     network,
    ...     {
    ...         "age": "mse",
    ...         "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ...     },
    ...     UncertaintyWeighting({"age": "gaussian", "kind": "softmax"}),
    ... )
    >>> trainer.compile("adam")
    >>> targets = {"age": ops.ones((8, 1)), "kind": ops.zeros((8,), "int32")}
    >>> history = trainer.fit(ops.ones((8, 4)), targets, verbose=0)
    >>> sorted(trainer.weighting.sigmas())
    ['age', 'kind']
    """

    train_function: Any  # made by `keras.Model`

    def __init__(
        self,
        network: keras.Model,
        losses: Mapping[str, Any],
        weighting: keras.layers.Layer,
        task_metrics: Mapping[str, Any] | None = None,
        sigma_learning_rate_factor: float = 10.0,
        **kwargs: Any,
    ) -> None:
        # The network casts for itself; casting here would round its inputs.
        super().__init__(**{"dtype": network.dtype_policy, "autocast": False, **kwargs})
        for name, given in {"losses": losses, "task_metrics": task_metrics}.items():
            if not isinstance(given or {}, dict):
                raise ValueError(
                    f"`{name}` must be a dict by task. Received: {type(given).__name__}"
                )
        self.losses_by_task = {  # as given, for `get_config`
            task: loss() if inspect.isclass(loss) else loss
            for task, loss in losses.items()
        }
        self.task_losses = {
            task: get_loss(loss, f"task {task!r}")
            for task, loss in self.losses_by_task.items()
            if loss is not None
        }
        if not self.task_losses:
            raise ValueError("`losses` must name at least one task.")
        self.network = network
        self.task_metrics = {
            task: get_metrics(task, metrics, self.task_losses.get(task))
            for task, metrics in (task_metrics or {}).items()
        }
        check_metrics(self.task_metrics)
        self._pairing = Pairing(network, self.losses_by_task, self.task_metrics)
        if hasattr(network, "output_names"):  # others tell when they are called
            outputs = self._pairing.check_outputs(network.output)
            build_metrics(self.task_metrics, outputs)
        elif getattr(network, "outputs", None):  # a built `Sequential`
            self._pairing.check_outputs(network.outputs[0])
        _check_weighting(weighting, self.task_losses)
        self.weighting = weighting
        self.sigma_learning_rate_factor = sigma_learning_rate_factor
        self._add_trackers()
        self._warned_of: set[str] = set()
        self.built = network.built

    def _add_trackers(self):
        self.total_tracker = keras.metrics.Mean(name="total")
        self.penalty_tracker = keras.metrics.Mean(name="penalty")
        self.loss_trackers, self.lowest_trackers = {}, {}
        for task in self.task_losses:
            self.loss_trackers[task] = keras.metrics.Mean(name=f"{task}_loss")
            self.lowest_trackers[task] = Lowest(name=f"{task}_lowest")
        self.count_trackers = {
            task: keras.metrics.Sum(name=f"{task}_count") for task in self.task_metrics
        }

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.network(x, training=training)

    def compile(
        self,
        optimizer: Any = "adam",
        loss: None = None,
        *,
        sigma_optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training, as `keras.Model.compile` without losses.

        The weights of the weighting have an optimizer of their own.
        `trainer.optimizer`, an `optimizers.WeightingOptimizer`, holds both; its
        `learning_rate` is the network's.

        Weight decay of the optimizer, if it has any, is restricted to kernels, that
        is, to weights with two axes or more. It does not act on biases, on scales and
        shifts of normalization, or on sigmas.

        Args:
            optimizer: that of the network, as in `keras.Model.compile`.
            loss: `None`; the losses are arguments of the trainer.
            sigma_optimizer: optional, that of the weights of the weighting. Defaults
                to a copy of `optimizer` with `sigma_learning_rate_factor` times its
                learning rate.
            **kwargs: passed on to `keras.Model.compile`.

        Raises:
            ValueError: for losses and metrics, which are arguments of the trainer;
                for an optimizer that cannot be copied; for weight decay before the
                network is built; and on several replicas of `tf.distribute` for
                clipping, accumulated gradients, averages that overwrite the weights,
                `steps_per_execution` and `jit_compile`.
        """
        kwargs["loss"] = loss
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.pop(name, None):
                raise ValueError(
                    f"`compile` takes no `{name}` here: losses, their weighting and "
                    "`task_metrics` are arguments of `MultiTaskTrainer`."
                )
        if optimizer is None:
            raise ValueError("`compile` needs an `optimizer`, such as 'adam'.")
        optimizer = keras.optimizers.get(optimizer)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if isinstance(inner, WeightingOptimizer):  # of a trainer compiled earlier
            if sigma_optimizer is None and inner.has_own_sigma_optimizer:
                sigma_optimizer = inner.sigma_optimizer
            inner = inner.network_optimizer
        elif isinstance(inner, keras.optimizers.MultiOptimizer):
            raise ValueError(
                "`optimizer` must not be a MultiOptimizer: give the optimizer of the "
                "network, and `sigma_optimizer` for the weights of the weighting."
            )
        sigma_optimizer = sigma_optimizer and keras.optimizers.get(sigma_optimizer)
        strategy = getattr(self, "distribute_strategy", None)  # of TensorFlow
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            _check_replicas([inner, sigma_optimizer], kwargs)
        if any(getattr(inner, name, None) for name in DECAYS):
            self._restrict_decay(inner)
        if sigmas := self.weighting.trainable_variables:
            factor = self.sigma_learning_rate_factor
            inner = WeightingOptimizer(inner, sigma_optimizer, factor, sigmas)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer.inner_optimizer = inner
            if optimizer.built:
                inner.build(self.trainable_variables)
        else:
            optimizer = inner
        super().compile(optimizer=optimizer, **kwargs)

    def _restrict_decay(self, optimizer):
        if not self.network.built:
            raise ValueError(
                "Weight decay is restricted to kernels, which the network does not "
                "have before it is built; call it on a batch before `compile`."
            )
        optimizer.exclude_from_weight_decay(
            var_list=[
                variable
                for variable in self.trainable_variables
                if len(variable.shape) < 2 or not optimizer._use_weight_decay(variable)
            ]
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`; arrays may have masks for some tasks only."""
        return self._call_completed(super().fit, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; arrays may have masks for some tasks only."""
        return self._call_completed(super().evaluate, *args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`."""
        logs = self._call_completed(super().train_on_batch, *args, **kwargs)
        self._check_epoch()
        return logs

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`."""
        logs = self._call_completed(super().test_on_batch, *args, **kwargs)
        self._check_epoch()
        return logs

    def _call_completed(self, method, *args, **kwargs):
        """Calls a method of Keras with masks for all tasks, if arrays have some."""
        call = inspect.signature(method).bind(*args, **kwargs)
        given = call.arguments
        if given.get("sample_weight") is not None:
            given["y"], given["sample_weight"] = self._pairing.complete(
                given.get("y"), given["sample_weight"]
            )
        validation = given.get("validation_data")
        if isinstance(validation, (tuple, list)) and len(validation) == 3:
            given["validation_data"] = (
                validation[0],
                *self._pairing.complete(*validation[1:]),
            )
        return method(*call.args, **call.kwargs)

    def make_train_function(self, force: bool = False) -> None:
        # If variables appear while a step is traced, TensorFlow traces it twice.
        if not self.optimizer.built and self.network.built:
            strategy = getattr(self, "distribute_strategy", None)  # of TensorFlow
            with strategy.scope() if strategy else contextlib.nullcontext():
                self.optimizer.build(self.trainable_variables)
        if self.optimizer.built:
            built_for = len(self.optimizer._trainable_variables)
            if built_for != len(self.trainable_variables):
                raise ValueError(
                    f"There are {len(self.trainable_variables)} trainable weights, but "
                    f"there were {built_for} when the trainer was compiled; compile it "
                    "again after freezing layers."
                )
        check_metrics_built(self.task_metrics)
        before = self.train_function
        super().make_train_function(force)
        step = self.train_function

        def first_step(*args):
            self.train_function = step
            logs = step(*args)
            self._check_signs({t: logs[f"{t}/loss"] for t in self.task_losses})
            return logs

        # Later losses are checked when an epoch ends. On JAX all of them are, since
        # `fit` holds the weights by now.
        if step is not before and keras.backend.backend() != "jax":
            self.train_function = first_step

    def make_test_function(self, force: bool = False) -> None:
        check_metrics_built(self.task_metrics)
        super().make_test_function(force)

    def export(self, filepath: PathLike, *args: Any, **kwargs: Any) -> Any:
        """Exports the network as `keras.Model.export` does, without the weighting.

        Raises:
            ValueError: for a SavedModel under PyTorch, which Keras cannot write.
        """
        format = args[0] if args else kwargs.get("format", "tf_saved_model")
        if keras.backend.backend() == "torch" and format == "tf_saved_model":
            raise ValueError(
                "A SavedModel cannot be exported under the PyTorch backend; give "
                "`format='onnx'`, or load the weights under KERAS_BACKEND=tensorflow."
            )
        return self.network.export(filepath, *args, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        losses, present = {}, {}
        options: dict[str, Any] = {}
        for task, batch in self._pairing.pair(y, y_pred, sample_weight).items():
            if task not in self.task_losses:
                continue
            total, weight, count = sum_loss(
                self.task_losses[task], *batch, whose=f"task {task!r}"
            )
            # Global values: every replica tracks, and logs, the same.
            losses[task], weight = mean_over_replicas(total, weight)
            present[task] = sum_over_replicas(count)
            self.loss_trackers[task].update_state(losses[task], sample_weight=weight)
            self.lowest_trackers[task].update_state(losses[task])
            if training and self._learns_sigmas:
                held = self.weighting.observe(task, losses[task], present[task])
                options.setdefault("held", {})[task] = held
        if training and hasattr(self.weighting, "update"):
            self.weighting.update(losses, present)
        size = ops.shape(keras.tree.flatten(y_pred)[0])[0]
        size = sum_over_replicas(ops.cast(size, "float32"))
        total = self.weighting(losses, present=present, **options)
        # Regularizers, and what layers of the network add.
        penalty = ops.zeros_like(total)
        for loss in self.losses:
            penalty += ops.cast(ops.sum(loss), total.dtype)
        penalty, _ = mean_over_replicas(penalty, ops.ones_like(penalty))
        self.penalty_tracker.update_state(penalty, sample_weight=size)
        total += penalty
        self.total_tracker.update_state(total, sample_weight=size)
        return total / num_replicas()  # their gradients are added up

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        for task, batch in self._pairing.pair(y, y_pred, sample_weight).items():
            if self.task_metrics.get(task):
                self._update_metrics_of(task, *batch)
        return self.get_metrics_result()

    def _update_metrics_of(self, task, target, output, mask):
        target, output, weights = align(
            target,
            output,
            mask,
            whose=f"task {task!r}",
            ignore_class=getattr(self.task_losses.get(task), "ignore_class", None),
            keep_finite=True,
        )
        if weights is None:
            count = ops.cast(ops.shape(output)[0], "float32")
        else:
            weights = ops.broadcast_to(weights, ops.shape(output)[:-1])
            count = ops.sum(weights)
        self.count_trackers[task].update_state(count)
        for metric in self.task_metrics[task]:
            try:
                metric.update_state(target, output, weights)
            except Exception as error:
                raise ValueError(
                    f"The metric {metric.name!r} of task {task!r} fails: "
                    f"{first_line(error)}"
                ) from error

    def get_metrics_result(self) -> dict[str, Any]:
        results = {"loss": self.total_tracker.result()}
        for task, tracker in self.loss_trackers.items():
            results[f"{task}/loss"] = _unless_empty(tracker.result(), tracker.count)
        for task, metrics in self.task_metrics.items():
            for metric in metrics:
                results[f"{task}/{metric.name}"] = _unless_empty(
                    metric.result(), self.count_trackers[task].total
                )
        return results

    @property
    def metrics_names(self) -> list[str]:
        """The names of what `evaluate` returns, in its order."""
        _, *others = self.get_metrics_result()
        return ["loss", *sorted(others)]

    def train_step(self, *args: Any) -> Any:
        """Takes Keras's step, then settles the log variances of tasks that are absent
        or starting."""
        if keras.backend.backend() == "jax":
            return self._stateless_step(super().train_step, *args)
        before = self._before_step()
        logs = super().train_step(*args)
        return {**logs, **self._after_step(before)}

    def test_step(self, *args: Any) -> Any:
        """Takes Keras's step, with the total of the whole split so far as `loss`."""
        if keras.backend.backend() == "jax":
            return self._stateless_step(super().test_step, *args)
        return {**super().test_step(*args), "loss": self._total_of_split()}

    def _stateless_step(self, step, state, data):
        """A step of JAX with what `train_step` and `test_step` add to it."""
        groups = [self.trainable_variables, self.non_trainable_variables]
        is_training = len(state) == 4
        if is_training:
            groups.append(self.optimizer.variables)
        groups.append(self.metrics_variables)

        def scope_of(state):
            pairs = (zip(group, values) for group, values in zip(groups, state))
            return keras.StatelessScope([pair for group in pairs for pair in group])

        with scope_of(state):
            before = self._before_step() if is_training else None
        logs, state = step(state, data)
        with scope_of(state) as scope:
            if is_training:
                logs = {**logs, **self._after_step(before)}
            else:
                logs = {**logs, "loss": self._total_of_split()}
        state = tuple([scope.get_current_value(v) for v in group] for group in groups)
        return logs, state

    @property
    def _learns_sigmas(self):
        return isinstance(self.weighting, UncertaintyWeighting)

    @property
    def _needs_positive_losses(self):
        return self._learns_sigmas or getattr(
            self.weighting, "needs_positive_losses", False
        )

    @property
    def _sigma_optimizer(self):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return getattr(optimizer, "sigma_optimizer", None)

    def _before_step(self):
        """What `_after_step` goes back to, or `None` if there is nothing to settle."""
        if self._sigma_optimizer is None or not self._learns_sigmas:
            return None
        return sigma_steps.copy_state(self.weighting, self._sigma_optimizer)

    def _after_step(self, before):
        """Settles the log variances, and returns the logs of the weighting."""
        if before is not None:
            sigma_steps.settle(self.weighting, self._sigma_optimizer, before)
        return self.weighting.logs() if hasattr(self.weighting, "logs") else {}

    def _total_of_split(self):
        losses = {task: t.result() for task, t in self.loss_trackers.items()}
        present = {task: t.count for task, t in self.loss_trackers.items()}
        total = self.weighting(losses, present=present)
        return total + ops.cast(self.penalty_tracker.result(), total.dtype)

    def _maybe_symbolic_build(self, *args, **kwargs):
        # On several replicas, TensorFlow's trainer averages the first batch over them
        # to find its shapes. That fails for boolean masks and uneven batches, and a
        # built network does not need it.
        if not self.network.built:
            super()._maybe_symbolic_build(*args, **kwargs)

    def _get_metrics_result_or_logs(self, logs):
        # Called at the end of an epoch or an evaluation. Total, sigmas and weights are
        # those of the last step. The metrics of all replicas are known only here.
        self._check_epoch()
        results = self.get_metrics_result()
        own = {k: v for k, v in logs.items() if k == "loss" or k not in results}
        return {**results, **own}

    def _check_signs(self, losses):
        """Raises `ValueError` for a task whose loss is negative."""
        if self._needs_positive_losses:
            name = f"`{type(self.weighting).__name__}` cannot weigh"
            explanation = "no noise level explains" if self._learns_sigmas else name
            for task, loss in losses.items():
                check_loss(task, loss, explanation)

    def _check_epoch(self):
        """Checks the losses of an epoch, and warns once of an `s` on a bound or NaN."""
        if self._needs_positive_losses:
            lowest = {t: low.result() for t, low in self.lowest_trackers.items()}
            self._check_signs(lowest)
        if not self._learns_sigmas:
            return
        low, high = self.weighting.bounds
        for task, s in self.weighting.log_variances.items():
            value = float(ops.convert_to_numpy(s))
            if not low < value < high and task not in self._warned_of:
                self._warned_of.add(task)
                warnings.warn(_explain(task, value, low), stacklevel=2)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "network": serialize(self.network),
            "losses": {
                task: serialize_loss(loss) for task, loss in self.losses_by_task.items()
            },
            "weighting": serialize(self.weighting),
            "task_metrics": serialize(self.task_metrics),
            "sigma_learning_rate_factor": self.sigma_learning_rate_factor,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "MultiTaskTrainer":
        deserialize = keras.saving.deserialize_keras_object
        parts = ("network", "losses", "weighting", "task_metrics")
        config = {
            key: deserialize(value, custom_objects) if key in parts else value
            for key, value in config.items()
        }
        return cls(**config)


def _explain(task, log_variance, low):
    """Says what a log variance that is NaN or on a bound means for its task."""
    if math.isnan(log_variance):
        return (
            f"The loss of task {task!r} was NaN, and so are its sigma and the network "
            "now; mask targets that are NaN."
        )
    if log_variance <= low:
        reason = "its loss is nearly 0 and would get all the weight."
    else:
        reason = (
            "its loss is so large that it has hardly any weight; scale its targets."
        )
    return (
        f"The log variance of task {task!r} is on its bound {log_variance:g}: {reason}"
    )


def _unless_empty(score, count):
    """A score, or NaN if no element was valid: an error of 0 would be a perfect one."""
    if isinstance(score, dict) or len(ops.convert_to_tensor(score).shape):
        return score
    score = as_float(score)
    is_empty = ops.equal(ops.convert_to_tensor(count), 0.0)
    return ops.where(is_empty, ops.full_like(score, math.nan), score)


def _check_replicas(optimizers, options):
    """Raises `ValueError` for what Keras cannot do on several replicas."""
    for name, plain in {"steps_per_execution": 1, "jit_compile": False}.items():
        if options.get(name, plain) not in (plain, "auto"):
            raise ValueError(
                f"On several replicas of tf.distribute Keras fails with `{name}`; "
                "leave it out."
            )
    for optimizer in filter(None, optimizers):
        check_replicated(optimizer)


def _check_weighting(weighting, tasks):
    """Raises `ValueError` if weighting and losses do not have the same tasks."""
    losses = {task: ops.zeros(()) for task in tasks}
    weighting(losses, present=losses)  # knows all tasks, or raises
    idle = [t for t in getattr(weighting, "tasks", tasks) if t not in tasks]
    if idle:
        raise ValueError(
            f"`weighting` has the task {idle[0]!r}, but `losses` has none for it; the "
            f"losses are for {', '.join(map(repr, tasks))}."
        )
