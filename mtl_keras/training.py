"""A `keras.Model` that trains a multi-output network under a loss weighting."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mtl_keras")
class MultiTaskTrainer(keras.Model):
    """Trains a multi-output network; the weighting of its losses is part of it.

    One step computes the loss of every task, lets `weighting` add them up, and
    updates network and weighting together. `fit`, `evaluate`, `predict` and every
    callback are Keras's own. The network itself stays as it is and can be saved
    and exported without the weighting.

    `fit` and `evaluate` take `(x, targets)` or `(x, targets, masks)`, arrays or a
    data set, where `targets` and `masks` are dicts by task. A mask is the sample
    weight of its task; masks given as arrays have to be given for every target. A
    task whose mask is all 0 in a batch adds nothing to it.

    The logs hold `loss` (the total, regularizers of the network included) and by
    task `{task}/loss`, `{task}/{metric}`, and while training `{task}/sigma` and
    `{task}/weight`, as they are after the last step.

    Args:
        network: functional `keras.Model`. Its outputs are a dict by task, or a
            list or a single tensor, which then go by `network.output_names`.
        losses: dict. Task name to anything called as
            `loss(y_true, y_pred, sample_weight)` that returns a scalar, such as
            an instance of `keras.losses.Loss`. Outputs without a loss are not
            trained.
        weighting: `UncertaintyWeighting` or `FixedWeighting` (or any layer called
            in the same way) with the same tasks.
        task_metrics: optional dict. Task name to a list of
            `keras.metrics.Metric`.
        sigma_learning_rate_factor: float. The weights of `weighting` move by this
            factor times the optimizer's step. Adam moves a weight by at most one
            learning rate a step, too slow for a log variance that may have to
            travel several units. Defaults to `10.0`.
        **kwargs: passed on to `keras.Model`.

    Raises:
        ValueError: if tasks of network, losses, weighting, metrics or data do not
            fit.

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
    ...         "age": keras.losses.MeanSquaredError(),
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

    def __init__(
        self,
        network,
        losses,
        weighting,
        task_metrics=None,
        sigma_learning_rate_factor=10.0,
        **kwargs,
    ):
        # The network casts for itself; casting here would round its inputs.
        super().__init__(**{"dtype": network.dtype_policy, "autocast": False, **kwargs})
        task_metrics = task_metrics or {}
        outputs = _by_task(network, network.output)
        for name, tasks in {"losses": losses, "task_metrics": task_metrics}.items():
            unknown = sorted(set(tasks) - set(outputs))
            if unknown:
                raise ValueError(
                    f"`{name}` names {unknown[0]!r}, but the outputs of the network "
                    f"are {', '.join(map(repr, outputs))}."
                )
        if not losses:
            raise ValueError("`losses` names no task.")
        weighting(
            {task: ops.zeros(()) for task in losses}
        )  # knows all tasks, or raises
        self.network = network
        self.task_losses = dict(losses)
        self.weighting = weighting
        self.task_metrics = {task: list(m) for task, m in task_metrics.items()}
        self.sigma_learning_rate_factor = sigma_learning_rate_factor
        self.loss_trackers = {
            task: keras.metrics.Mean(name=f"{task}_loss") for task in losses
        }
        self.built = True

    def call(self, x, training=None):
        return self.network(x, training=training)

    def compile(self, optimizer="adam", **kwargs):
        """Configures training, as `keras.Model.compile` without losses.

        Weight decay of the optimizer, if it has any, is restricted to kernels,
        that is weights with two axes or more: no bias, no normalization scale or
        shift, no sigma is decayed.
        """
        names = ("loss", "loss_weights", "metrics", "weighted_metrics")
        given = [name for name in names if kwargs.get(name) is not None]
        if given:
            raise ValueError(
                f"`compile` takes no `{given[0]}` here: losses, their weighting and "
                "`task_metrics` are arguments of `MultiTaskTrainer`."
            )
        optimizer = keras.optimizers.get(optimizer)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if inner.weight_decay is not None and not inner.built:
            inner.exclude_from_weight_decay(
                var_list=[
                    variable
                    for variable in self.trainable_variables
                    if len(variable.shape) < 2 or not inner._use_weight_decay(variable)
                ]
            )
        super().compile(optimizer=optimizer, **kwargs)

    def make_train_function(self, force=False):
        # Variables that appear while a step is traced make TensorFlow trace it twice.
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        outputs = _by_task(self.network, y_pred)
        masks = {} if sample_weight is None else sample_weight
        self._check_data(y, masks)
        losses, present = {}, {}
        for task, loss in self.task_losses.items():
            mask = masks.get(task)
            losses[task] = loss(y[task], outputs[task], mask)
            # A batch counts by its valid elements: the mean over a split of a
            # loss that divides by them, as `MaskedLoss` does, is exact then.
            count = ops.shape(y[task])[0] if mask is None else ops.sum(mask)
            count = ops.cast(count, "float32")
            present[task] = ops.cast(count > 0, "float32")
            self.loss_trackers[task].update_state(losses[task], sample_weight=count)
        total = self.weighting(losses, present=present)
        for loss in self.losses:  # regularizers and `add_loss` of the network
            total += ops.cast(ops.sum(loss), total.dtype)
        return total

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        outputs = _by_task(self.network, y_pred)
        masks = {} if sample_weight is None else sample_weight
        for task, metrics in self.task_metrics.items():
            for metric in metrics:
                metric.update_state(y[task], outputs[task], masks.get(task))
        return self.get_metrics_result()

    def get_metrics_result(self):
        results = {"loss": self._loss_tracker.result()}
        for task, tracker in self.loss_trackers.items():
            results[f"{task}/loss"] = tracker.result()
            for metric in self.task_metrics.get(task, ()):
                results[f"{task}/{metric.name}"] = metric.result()
        return results

    def train_step(self, *args):
        """Keras's step, after which the weights of `weighting` go on as far as
        `sigma_learning_rate_factor` says."""
        if keras.backend.backend() == "jax":
            return self._stateless_train_step(*args)
        variables = self.weighting.trainable_variables
        before = [ops.copy(variable) for variable in variables]
        logs = super().train_step(*args)
        for variable, old in zip(variables, before):
            variable.assign(self._stretch(old, variable))
        return {**logs, **self._weighting_logs()}

    def _stateless_train_step(self, state, data):
        before = state[0]
        logs, (after, *others) = super().train_step(state, data)
        own = {id(variable) for variable in self.weighting.trainable_variables}
        after = [
            self._stretch(old, new) if id(variable) in own else new
            for variable, old, new in zip(self.trainable_variables, before, after)
        ]
        with keras.StatelessScope(list(zip(self.trainable_variables, after))):
            logs = {**logs, **self._weighting_logs()}
        return logs, (after, *others)

    def _stretch(self, old, new):
        return old + self.sigma_learning_rate_factor * (new - old)

    def _weighting_logs(self):
        return self.weighting.logs() if hasattr(self.weighting, "logs") else {}

    def _check_data(self, targets, masks):
        for name, given in {"targets": targets, "masks": masks}.items():
            if not isinstance(given, dict):
                raise ValueError(
                    f"The {name} must be a dict by task, as in "
                    f"`fit(x, {{task: target}})`. Received: {type(given).__name__}"
                )
        missing = [task for task in self.task_losses if task not in targets]
        if missing:
            raise ValueError(
                f"The targets lack {missing[0]!r}; they hold "
                f"{', '.join(map(repr, targets))}."
            )
        unknown = sorted(set(masks) - set(self.task_losses))
        if unknown:
            raise ValueError(
                f"There is a mask for {unknown[0]!r}, which has no loss; the losses "
                f"are for {', '.join(map(repr, self.task_losses))}."
            )

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "network": serialize(self.network),
            "losses": serialize(self.task_losses),
            "weighting": serialize(self.weighting),
            "task_metrics": serialize(self.task_metrics),
            "sigma_learning_rate_factor": self.sigma_learning_rate_factor,
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        deserialize = keras.saving.deserialize_keras_object
        parts = ("network", "losses", "weighting", "task_metrics")
        config = {
            key: deserialize(value, custom_objects) if key in parts else value
            for key, value in config.items()
        }
        return cls(**config)


def _by_task(network, outputs):
    """The outputs of a network as a dict, whatever structure they have."""
    if isinstance(outputs, dict):
        return outputs
    if not isinstance(outputs, (list, tuple)):
        outputs = [outputs]
    return dict(zip(network.output_names, outputs))
