"""Learning rate schedules: as functions of the step, and on a plateau."""

from collections.abc import Sequence
from typing import Any

import keras

# Oxford, cityscapestask/train.py: PyTorch's defaults, but for a patience of 5 and a
# threshold of 1e-3. PyTorch acts one validation later than Keras at equal patience, and
# its threshold is a share of the best loss, which means nothing for a total that may be
# negative: here it is absolute.
PLATEAU = {"factor": 0.1, "patience": 6, "min_delta": 1e-3}


def build_schedule(
    name: str, learning_rate: float, num_steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of an optimizer, as a function of the step if it changes.

    Args:
        name: str. `"constant"`; `"poly"`, down to 0 with power 0.9; `"cosine"`, up from
            0 for a tenth of the steps and down to 0; `"halved"`, to a half at half of
            the steps; or `"plateau"`, which is left to the callback `ResumablePlateau`.
        learning_rate: float. The largest one.
        num_steps: int. Training steps of the whole run.
    """
    schedules = keras.optimizers.schedules
    if name == "poly":
        return schedules.PolynomialDecay(learning_rate, num_steps, 0.0, 0.9)
    if name == "cosine":
        # Rising first: at full rate, Adam's first steps kill units of the heads.
        warmup = num_steps // 10
        return schedules.CosineDecay(
            0.0, num_steps - warmup, warmup_target=learning_rate, warmup_steps=warmup
        )
    if name == "halved":
        return schedules.PiecewiseConstantDecay(
            [num_steps // 2], [learning_rate, learning_rate / 2]
        )
    return learning_rate


class ResumablePlateau(keras.callbacks.ReduceLROnPlateau):
    """Keras's `ReduceLROnPlateau` on the validation loss, which starts where an
    interrupted training left it.

    Keras forgets how long the loss has not fallen. That follows from the losses so
    far, so this callback goes through them again.

    Args:
        losses: list of float. The validation losses of the finished epochs.
        **kwargs: passed on to `keras.callbacks.ReduceLROnPlateau`.
    """

    def __init__(self, losses: Sequence[float], **kwargs: Any) -> None:
        super().__init__(monitor="val_loss", mode="min", **kwargs)
        self.losses = losses
        self._is_started = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._is_started:  # by the rest of an epoch
            return
        self._is_started = True
        super().on_train_begin(logs)
        for epoch, loss in enumerate(self.losses):
            self.on_epoch_end(epoch, {"val_loss": loss})
