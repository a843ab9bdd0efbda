import dataclasses
import json
import re
import shutil

import h5py
import keras
import numpy as np
import pytest

from mtl_keras.commands import train
from mtl_keras.data import records
from mtl_keras.errors import BusyError, DivergenceError, UserError
from mtl_keras.experiments import (
    callbacks,
    checkpoints,
    divergence,
    evaluation,
    runs,
    schedules,
    setup,
)
from mtl_keras.experiments.options import EvaluateOptions, TrainOptions
from mtl_keras.experiments.problems import open_problem
from mtl_keras.losses import MaskedLoss
from mtl_keras.weighting import FixedWeighting, UncertaintyWeighting


def make_options(output, **values):
    return TrainOptions(output=str(output), image_size=(32, 64), **values)


def build_trainer(options):
    return setup.build_trainer(open_problem(options))


def claim(options, epochs):
    with runs.claim_directory(options, epochs) as directory:
        return directory


def write_checkpoint(directory, epoch, name="last", damaged=False):
    checkpoint = directory / "checkpoints" / name
    checkpoint.mkdir(parents=True, exist_ok=True)
    path = checkpoint / "latest.weights.h5"
    with h5py.File(path, "w") as file:
        file["epoch"] = np.full(1000, epoch)
    metadata = checkpoint / "training_metadata.json"
    metadata.write_text(json.dumps({"epoch": epoch, "batch": 0}))
    checkpoints.write_manifest(checkpoint)
    if damaged:  # it still opens
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    return path, metadata


def checkpoint_epoch(directory):
    with h5py.File(directory / "checkpoints" / "last" / "latest.weights.h5") as file:
        return int(file["epoch"][0])


@pytest.fixture
def run(tmp_path):
    """A run directory after two of three epochs, and its options."""
    options = make_options(tmp_path / "run", epochs=3)
    directory = claim(options, 3)
    write_checkpoint(directory, 1, "before")
    write_checkpoint(directory, 2)
    return directory, options


def test_a_new_directory_gets_the_options(tmp_path):
    options = make_options(tmp_path / "new" / "run", seed=3)
    directory = claim(options, 30)
    assert directory == tmp_path / "new" / "run"
    stored = json.loads((directory / "options.json").read_text())
    assert stored["seed"] == 3 and stored["image_size"] == [32, 64]


def test_an_empty_directory_will_do(tmp_path):
    (tmp_path / "run").mkdir()
    claim(make_options(tmp_path / "run"), 30)
    assert (tmp_path / "run" / "options.json").exists()


def test_the_directory_is_named_after_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = claim(TrainOptions(recipe="original"), 30)
    assert directory.as_posix() == "runs/original"


def test_an_unfinished_run_wants_resume(run):
    directory, options = run
    with pytest.raises(UserError, match=f"{directory} holds an unfinished.*--resume"):
        claim(options, 3)
    resumed = dataclasses.replace(options, resume=True)
    assert claim(resumed, 3) == directory
    assert not json.loads((directory / "options.json").read_text())["resume"]


def test_a_run_is_trained_by_one_process(run):
    directory, options = run
    resumed = dataclasses.replace(options, resume=True)
    with runs.claim_directory(resumed, 3):
        with pytest.raises(BusyError, match=f"{directory} is being trained by another"):
            claim(resumed, 3)
    assert claim(resumed, 3) == directory


def test_a_finished_run_does_not(run):
    directory, options = run
    write_checkpoint(directory, 3)
    assert runs.is_trained(directory, 3)
    assert claim(options, 3) == directory


def test_other_options_are_named(run):
    directory, options = run
    before = {
        path: path.read_bytes() for path in directory.rglob("*.*") if path.is_file()
    }
    changed = dataclasses.replace(options, epochs=4, backbone="resnet50", resume=True)
    with pytest.raises(UserError) as raised:
        claim(changed, 4)
    message = str(raised.value)
    assert "--epochs 3 there and 4 here" in message
    assert "--backbone small there and resnet50 here" in message
    assert "--resume" not in message
    assert {path: path.read_bytes() for path in before} == before


def test_foreign_directories_are_left_alone(tmp_path):
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(UserError, match=f"{tmp_path} exists and is not a run"):
        claim(make_options(tmp_path), 30)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
    for output in (tmp_path / "photo.png", tmp_path / "photo.png" / "run"):
        with pytest.raises(UserError, match="choose another --output"):
            claim(make_options(output), 30)
    assert (tmp_path / "photo.png").read_text() == "mine"


def test_broken_options_are_named(run):
    directory, options = run
    (directory / "options.json").write_text("{")
    with pytest.raises(UserError, match="options.json does not hold the options"):
        claim(options, 3)


def resume(run):
    directory, options = run
    claim(dataclasses.replace(options, resume=True), 3)
    return directory


def test_an_intact_checkpoint_is_kept(run):
    directory = resume(run)
    assert (runs.finished_epochs(directory), checkpoint_epoch(directory)) == (2, 2)


@pytest.mark.parametrize("what", ["weights", "metadata"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, what, capsys):
    weights, metadata = write_checkpoint(run[0], 2, damaged=what == "weights")
    if what == "metadata":
        metadata.write_text("")
    directory = resume(run)
    assert (runs.finished_epochs(directory), checkpoint_epoch(directory)) == (1, 1)
    damaged = {"weights": weights, "metadata": metadata}[what]
    assert f"{damaged} is damaged" in capsys.readouterr().err


def test_checkpoints_of_another_version_are_refused(run):
    path = run[0] / "checkpoints" / "last" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(UserError, match="last is of version 2 of the checkpoints"):
        resume(run)


def test_two_damaged_checkpoints_are_named(run):
    write_checkpoint(run[0], 2, damaged=True)
    write_checkpoint(run[0], 1, "before", damaged=True)
    with pytest.raises(UserError, match="latest.weights.h5 is damaged.*remove"):
        resume(run)


def test_a_first_checkpoint_cut_short_does_not_count(tmp_path):
    options = make_options(tmp_path / "run", epochs=3)
    directory = claim(options, 3)
    write_checkpoint(directory, 1, "unfinished", damaged=True)
    resume((directory, options))
    assert runs.finished_epochs(directory) == 0


def test_a_kill_between_two_renames_leaves_the_one_before(run):
    shutil.rmtree(run[0] / "checkpoints" / "last")
    directory = resume(run)
    assert (runs.finished_epochs(directory), checkpoint_epoch(directory)) == (1, 1)


def test_unfinished_runs_of_an_earlier_version_are_refused(run):
    (run[0] / "checkpoints" / "last" / "manifest.json").unlink()
    shutil.rmtree(run[0] / "checkpoints" / "before", ignore_errors=True)
    with pytest.raises(UserError, match="begun by an earlier version"):
        resume(run)
    (run[0] / "result.json").write_text("{}")
    assert runs.finished_epochs(resume(run)) == 2


@pytest.mark.parametrize("killed_at", range(4))
def test_a_checkpoint_is_whole_wherever_saving_ends(run, monkeypatch, killed_at):
    """Before each of the four changes of names that saving comes to."""
    directory, _ = run
    calls = iter(range(10))

    class Killed(BaseException):
        pass

    def until_killed(function):
        def call(*args, **kwargs):
            if next(calls) == killed_at:
                raise Killed
            return function(*args, **kwargs)

        return call

    layer = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile("sgd", "mse")
    saver = checkpoints.Checkpoints(directory / "checkpoints", 1)
    saver.set_model(model)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", until_killed(shutil.rmtree))
        rename = until_killed(type(directory).rename)
        patch.setattr(type(directory), "rename", rename)
        with pytest.raises(Killed):
            saver.on_epoch_end(2)
    last = resume(run) / "checkpoints" / "last"
    assert checkpoints.find_damage(last) == ""
    assert runs.finished_epochs(directory) == checkpoint_epoch(directory)
    saver.on_epoch_end(2)
    assert runs.finished_epochs(directory) == 3
    assert checkpoints.find_damage(last) == ""


def test_braces_in_the_name_of_a_run(tmp_path):
    directory = tmp_path / "{a}-{0}-{"
    made = callbacks.make_callbacks(directory, problem_of(tasks=("depth",)), 5, 2)
    (best,) = (c for c in made if isinstance(c, keras.callbacks.ModelCheckpoint))
    expected = str(directory / "checkpoints" / "unfinished-best.weights.h5")
    assert best.filepath.format(epoch=1) == expected


def test_count_steps():
    options = TrainOptions(batch_size=4, epochs=5)
    assert setup.plan_epochs(options, 19) == (5, 4)
    with pytest.raises(UserError, match="3 frames.*batch of 4.*--batch-size"):
        setup.plan_epochs(options, 3)


@pytest.mark.parametrize(
    "steps, expected", [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (8, (2, 4)), (9, (3, 3))]
)
def test_count_steps_in_place_of_epochs(steps, expected):
    options = TrainOptions(batch_size=4, epochs=5, steps=steps)
    epochs, steps_per_epoch = setup.plan_epochs(options, 19)  # 4 batches a pass
    assert (epochs, steps_per_epoch) == expected
    assert epochs * steps_per_epoch >= steps


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"train_frames": 8}, (5, 2)),
        ({"train_frames": 8, "epoch_steps": 5}, (2, 5)),  # 10 steps in all
        ({"steps": 9, "epoch_steps": 4}, (3, 3)),
        ({"steps": 9, "epoch_steps": 40}, (1, 9)),
    ],
)
def test_count_steps_between_validations(values, expected):
    options = TrainOptions(batch_size=4, epochs=5, **values)
    assert setup.plan_epochs(options, 19) == expected


def test_more_frames_than_there_are():
    options = TrainOptions(train_frames=20)
    with pytest.raises(UserError, match="--train-frames asks for 20.* has 19"):
        setup.plan_epochs(options, 19)


def test_learned_weighting_starts_in_the_range():
    options = TrainOptions(initial_variance=(0.2, 1.0), seed=4)
    weighting = setup.build_weighting(options)
    assert isinstance(weighting, UncertaintyWeighting)
    starts = {t: float(s.numpy()) for t, s in weighting.log_variances.items()}
    assert all(np.log(0.2) <= s <= 0 for s in starts.values())
    assert len(set(starts.values())) == 3
    again = setup.build_weighting(options).log_variances
    assert {task: float(s.numpy()) for task, s in again.items()} == starts


def test_fixed_weighting():
    equal = setup.build_weighting(TrainOptions(weighting="fixed"))
    assert isinstance(equal, FixedWeighting)
    assert equal.task_weights() == {
        task: pytest.approx(1 / 3) for task in ("semantic", "instance", "depth")
    }
    weights = {"semantic": 0.5, "depth": 0.0}
    given = setup.build_weighting(
        TrainOptions(
            weighting="fixed", tasks=("semantic", "depth"), task_weights=weights
        )
    )
    assert given.task_weights() == weights


@pytest.mark.parametrize(
    "values, message",
    [
        ({"task_weights": {"depth": 1.0}}, "--task-weights needs --weighting fixed"),
        (
            {"weighting": "fixed", "task_weights": {"depth": 1.0}},
            "weights for depth, but the tasks are semantic, instance, depth",
        ),
        (
            {
                "weighting": "fixed",
                "tasks": ("depth",),
                "task_weights": {"depth": 0.0},
            },
            "switches every task off",
        ),
        ({"likelihoods": {"depth": "mtl"}}, "no likelihood for semantic"),
        ({"dataset": "digits"}, "digits has the tasks class, .* names semantic"),
        (
            {"dataset": "digits", "tasks": ("class",), "data": "CITYSCAPES"},
            "--data names a Cityscapes tree.*--dataset digits",
        ),
        ({"architecture": "kendall", "decoder": "direct"}, "not of kendall"),
    ],
)
def test_options_that_do_not_fit(values, message):
    with pytest.raises(UserError, match=message):
        setup.check_options(TrainOptions(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"object_classes": "true"},
        {"method": "hdbscan"},
        {"method_options": {"eps": 1.0}},
        {"left_over": "nearest"},
    ],
)
def test_how_to_find_objects_needs_instances(values):
    flag = f"--{next(iter(values)).replace('_', '-')}"
    with pytest.raises(UserError, match=f"{flag} is about objects; add --instances"):
        setup.check_evaluation(EvaluateOptions(**values), TrainOptions())
    setup.check_evaluation(EvaluateOptions(instances=True, **values), TrainOptions())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"eps": 2.0, "max_eps": 1.0}, "max_eps at least eps"),
        ({"radius": 2}, "'optics' has the options .*max_eps"),
        ({"min_samples": 5.5}, "min_samples must be a whole number"),
    ],
)
def test_options_that_the_method_does_not_take(values, message):
    options = EvaluateOptions(instances=True, method_options=values)
    with pytest.raises(UserError, match=f"--method-options: .*{message}"):
        setup.check_evaluation(options, TrainOptions())


def test_optimizers():
    adam = setup.build_optimizer(
        TrainOptions(learning_rate=0.1, schedule="constant", weight_decay=0.0), 10
    )
    assert isinstance(adam, keras.optimizers.Adam) and adam.weight_decay is None
    assert float(adam.learning_rate) == pytest.approx(0.1)
    sgd = setup.build_optimizer(
        TrainOptions(optimizer="sgd", learning_rate=0.1, schedule="poly"), 10
    )
    assert isinstance(sgd, keras.optimizers.SGD) and sgd.weight_decay == 1e-4
    schedule = sgd._learning_rate
    for step in (0, 4, 10):
        expected = 0.1 * (1 - step / 10) ** 0.9
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)


def test_cosine_schedule_rises_for_a_tenth_of_the_run():
    def rates(num_steps, *steps):
        options = TrainOptions(learning_rate=0.1, schedule="cosine")
        schedule = setup.build_optimizer(options, num_steps)._learning_rate
        return [float(schedule(step)) for step in steps]

    assert rates(100, 0, 5, 10, 55, 100) == pytest.approx(
        [0, 0.05, 0.1, 0.05, 0], abs=1e-6
    )
    assert rates(4, 0, 2, 4) == pytest.approx([0.1, 0.05, 0], abs=1e-6)


def test_losses_of_the_scenes_are_those_of_the_paper():
    losses = {
        task: MaskedLoss(loss)  # averages as the trainer does
        for task, loss in open_problem(make_options("x")).make_losses().items()
    }
    offsets = np.array([[[[3, -4], [1, 0], [np.nan, 9]]]], "float32")  # (1, 1, 3, 2)
    mask = np.array([[[1, 1, 0]]], "float32")
    zeros = np.zeros_like(offsets)
    assert float(losses["instance"](zeros, offsets, mask)) == (3 + 4 + 1 + 0) / 2
    disparity = np.array([[[[3], [-4], [np.nan]]]], "float32")
    assert float(losses["depth"](zeros[..., :1], disparity, mask)) == (3 + 4) / 2
    logits = np.log(np.full((1, 1, 3, 19), 1 / 19, "float32"))
    cross_entropy = losses["semantic"](np.zeros((1, 1, 3), "int32"), logits, mask)
    assert float(cross_entropy) == pytest.approx(np.log(19))


@pytest.mark.parametrize("tasks", [("depth",), ("semantic", "instance", "depth")])
def test_trainer_of_a_run(tasks, set_policy):
    trainer = build_trainer(make_options("x", tasks=tasks, label_set="label_ids"))
    assert set(trainer.network.output) == set(trainer.task_losses) == set(tasks)
    assert set(trainer.weighting.sigmas()) == set(tasks)
    if "semantic" in tasks:
        assert trainer.network.output["semantic"].shape[-1] == 34
    assert [metric.name for metric in trainer.task_metrics["depth"]] == [
        "mean_abs",
        "rms",
    ]


def test_the_policy_of_a_run(set_policy):
    trainer = build_trainer(make_options("x", precision="mixed_bfloat16"))
    assert trainer.network.get_layer("conv1_conv").compute_dtype == "bfloat16"
    assert build_trainer(make_options("x")).network.compute_dtype == "float32"


def write_history(directory, rows):
    lines = ["epoch,val_semantic/miou,val_depth/mean_abs"]
    lines += [f"{epoch},{miou},{depth}" for epoch, miou, depth in rows]
    (directory / "history.csv").write_text("\n".join(lines) + "\n")


ROWS = [(0, 0.2, 5.0), (1, 0.4, 3.0), (2, 0.3, 4.0)]


def test_absent_scores_are_null_in_the_result(run):
    directory, _ = run
    write_history(directory, [(0, 0.2, 5.0), (1, 0.4, "nan")])
    runs.write_result(directory)
    text = (directory / "result.json").read_text()
    assert json.loads(text) == {"semantic/miou": 0.4, "depth/mean_abs": None}
    assert runs.find_best_scores(directory, ("semantic",))["depth/mean_abs"] is None


def test_what_was_logged_after_the_checkpoint_is_forgotten(run):
    directory, _ = run
    write_history(directory, ROWS)
    runs.drop_unfinished_epochs(directory)
    history = runs.read_history(directory)
    assert [row["epoch"] for row in history] == [0, 1]
    assert history[1]["val_semantic/miou"] == 0.4
    (directory / "checkpoints" / "last" / "training_metadata.json").unlink()
    runs.drop_unfinished_epochs(directory)
    assert runs.read_history(directory) == []
    runs.drop_unfinished_epochs(directory)


def test_what_is_kept_of_the_history_is_kept_to_the_byte(run):
    directory, _ = run
    paths = [directory / name for name in ("history.csv", "epochs.csv")]
    lines = [b"epoch,loss\r\n", b"0,1.5\r\n", b"1,1.25\r\n", b"2,1.0\r\n"]
    for path in paths:
        path.write_bytes(b"".join(lines))
    runs.drop_unfinished_epochs(directory)
    for path in paths:
        assert path.read_bytes() == b"".join(lines[:3])


def problem_of(**options):
    return open_problem(TrainOptions(**options))


def test_the_best_so_far_outlives_a_restart(run):
    directory, _ = run
    write_history(directory, ROWS)
    thresholds = []
    for tasks in (("semantic",), ("depth",)):
        (checkpoint,) = (
            callback
            for callback in callbacks.make_callbacks(
                directory, problem_of(tasks=tasks), 5, 2
            )
            if isinstance(callback, keras.callbacks.ModelCheckpoint)
        )
        thresholds.append(checkpoint.best)
    assert thresholds == [0.4, 3.0]


# The schedule "plateau".


class Interruption(keras.callbacks.Callback):
    """Ctrl-C at the start of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def train_digits(monkeypatch, output, interrupted_at=None):
    """The history, and the weights and optimizer state at the end, of seven epochs."""
    options = TrainOptions(
        dataset="digits",
        tasks=("class", "reconstruction"),
        likelihoods={"class": "softmax", "reconstruction": "laplace"},
        train_frames=64,
        batch_size=32,
        epochs=7,
        learning_rate=0.01,
        schedule="plateau",
        output=str(output),
        resume=True,
        jit="off",
    )
    if interrupted_at:
        make_callbacks = callbacks.make_callbacks
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(
                callbacks,
                "make_callbacks",
                lambda *args: [*make_callbacks(*args), Interruption(interrupted_at)],
            )
            train.train(options, export=False)
        assert runs.finished_epochs(output) == interrupted_at
    train.train(options, export=False)
    found = {}
    with h5py.File(output / "checkpoints" / "last" / "latest.weights.h5") as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return runs.read_history(output), found


@pytest.fixture
def never_falls(monkeypatch):
    """No loss is low enough to be an improvement on the first."""
    settings = {"factor": 0.5, "patience": 2, "min_delta": 1e9}
    monkeypatch.setattr(callbacks, "PLATEAU", settings)


def test_the_rate_falls_on_a_plateau(tmp_path, monkeypatch, never_falls, set_policy):
    history, weights = train_digits(monkeypatch, tmp_path / "run")
    rates = [row["learning_rate"] for row in history]
    # Of the first epoch, and of every second after two without an improvement.
    expected = [0.01, 0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025]
    assert rates == pytest.approx(expected, rel=1e-6)
    rate = weights["optimizer/network_optimizer/vars/1"]
    assert rate == pytest.approx(0.00125)  # to go on with


@pytest.mark.parametrize("epoch", [2, 5])
def test_a_plateau_outlives_a_restart(
    tmp_path, monkeypatch, never_falls, set_policy, epoch
):
    """One epoch into a plateau, and one into the second after a fall of the rate."""
    history, weights = train_digits(monkeypatch, tmp_path / "whole")
    again, found = train_digits(monkeypatch, tmp_path / "parts", interrupted_at=epoch)
    assert history == again
    assert weights.keys() == found.keys() and len(weights) > 50
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_the_plateau_is_that_of_oxford():
    """PyTorch's scheduler waits for more than `patience` losses that are no better."""
    trainer = keras.Sequential([keras.layers.Dense(1)])
    trainer.compile(keras.optimizers.SGD(1.0))
    callback = schedules.ResumablePlateau([], **schedules.PLATEAU)
    callback.set_model(trainer)
    callback.on_train_begin()
    rates = []
    losses = [-1.0, -1.0005, *[-0.9] * 4, -1.0009, -1.0009, -1.1, -1.0]
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        rates.append(float(trainer.optimizer.learning_rate))
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 4)
    assert callback.best == -1.1 and callback.wait == 1


def test_other_schedules_have_no_plateau(tmp_path):
    for schedule in ("constant", "poly", "cosine"):
        problem = problem_of(tasks=("depth",), schedule=schedule)
        made = callbacks.make_callbacks(tmp_path, problem, 5, 2)
        assert not any(isinstance(c, schedules.ResumablePlateau) for c in made)
    adam = setup.build_optimizer(
        TrainOptions(learning_rate=0.1, schedule="plateau"), 10
    )
    assert float(adam.learning_rate) == pytest.approx(0.1)


def test_divergence_is_explained_and_replayed(tmp_path, capsys):
    options = TrainOptions(
        dataset="digits",
        tasks=("class", "reconstruction"),
        likelihoods={"class": "softmax", "reconstruction": "laplace"},
        train_frames=96,
        batch_size=32,
        epochs=2,
        learning_rate=1e30,
        output=str(tmp_path / "run"),
        jit="off",
    )
    with pytest.raises(DivergenceError) as raised:
        train.train(options)
    message = str(raised.value)
    found = re.search(
        r"loss of class and reconstruction of .*run became infinite or NaN in step 2 "
        r"on the frames (.*); python train.py --replay .*run shows that step",
        message,
    )
    assert found and (tmp_path / "run" / "diverged.txt").read_text() == message + "\n"
    step, frames, (images, targets, masks) = divergence.read_batch(
        tmp_path / "run" / "diverged.npz"
    )
    assert step == 2 and len(frames) == 32
    assert found[1] == ", ".join([*frames[:8], "..."])
    digits = open_problem(options).splits["train"]
    numbers = [int(number) for number in frames]
    np.testing.assert_array_equal(images, digits[0][numbers])
    np.testing.assert_array_equal(targets["class"], digits[1][numbers])
    assert masks["class"].all()
    train.main(["--replay", options.output])
    shown = capsys.readouterr().out
    assert f"Step 2, frames: {', '.join(frames)}" in shown
    assert re.search(r"\| class \| 32 of 32 \| 0 to 9 \| \d+ not finite \| nan", shown)
    (tmp_path / "run" / "diverged.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="diverged.npz is damaged"):
        train.main(["--replay", options.output])
    (tmp_path / "run" / "diverged.npz").unlink()
    with pytest.raises(UserError, match="diverged.npz is missing: the loss of"):
        train.main(["--replay", options.output])
    with pytest.raises(UserError, match="--seed is set by the run of --replay"):
        train.main(["--replay", options.output, "--seed", "3"])


def test_a_run_goes_on_with_the_data_it_began_with(tmp_path, monkeypatch):
    problem = problem_of(dataset="digits", tasks=("class", "reconstruction"))
    for _ in range(2):
        evaluation.write_constant_predictor(problem, tmp_path)
    images, labels = problem.splits["val"]
    monkeypatch.setitem(problem.splits, "val", (images, 0 * labels))
    with pytest.raises(UserError, match="not those that it began with .constant_resul"):
        evaluation.write_constant_predictor(problem, tmp_path)
    (tmp_path / "constant_result.json").write_text("{")  # damaged: made again
    evaluation.write_constant_predictor(problem, tmp_path)
    images, labels = problem.splits["train"]
    monkeypatch.setitem(problem.splits, "train", (255 - images, labels))
    with pytest.raises(UserError, match="not those that it began with .constant.json"):
        evaluation.write_constant_predictor(problem, tmp_path)


def test_logs_that_cannot_be_written_do_not_stop_a_training(tmp_path, capsys):
    calls = []

    class Full(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            calls.append(batch)
            if batch == 1:
                raise OSError(28, "No space left on device", "events")

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(
        np.zeros((4, 1)),
        np.zeros((4, 1)),
        batch_size=1,
        callbacks=[callbacks.Dispensable(Full())],
        verbose=0,
    )
    assert calls == [0, 1]
    said = capsys.readouterr().err
    assert said.count("Full cannot write") == 1 and "No space left" in said


def test_weights_that_the_last_step_spoils(run, monkeypatch):
    directory, _ = run
    problem = problem_of(dataset="digits", tasks=("class",), batch_size=4)
    check = divergence.CheckLosses(steps_per_epoch=5)
    check.set_params({"steps": 5})
    check.on_epoch_begin(1)
    check.on_train_batch_end(4, {"loss": 1.0, "class/loss": 1.0})
    with (
        pytest.raises(DivergenceError, match="loss of class of .* after step 10 on"),
        divergence.explain_divergence(directory, problem),
    ):
        check.on_epoch_end(1, {"val_loss": np.inf, "val_class/loss": np.inf})
    with pytest.raises(RuntimeError), divergence.explain_divergence(directory, problem):
        raise RuntimeError("another reason")


def test_checkpoints_that_do_not_fit(tmp_path):
    options = make_options(tmp_path, tasks=("depth",))
    directory = claim(options, 1)
    trainer = build_trainer(options)
    with pytest.raises(UserError, match="best.weights.h5 is missing.*train.py"):
        runs.restore_best(trainer, directory)
    path = directory / "checkpoints" / "best.weights.h5"
    path.parent.mkdir()
    trainer.save_weights(path)
    runs.restore_best(trainer, directory)
    other = build_trainer(make_options(tmp_path, tasks=("instance", "depth")))
    with pytest.raises(UserError, match="best.weights.h5 does not fit.*options.json"):
        runs.restore_best(other, directory)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="best.weights.h5 does not fit"):
        runs.restore_best(trainer, directory)


def test_constant_predictor_of_a_run(tmp_path):
    problem = open_problem(make_options(tmp_path))
    with pytest.raises(UserError, match="constant.json is missing.*train.py"):
        evaluation.load_constant_predictor(problem, tmp_path)
    values = {"semantic": 3, "instance": 0.0, "depth": 1.5}
    (tmp_path / "constant.json").write_text(json.dumps(values))
    predictor = evaluation.load_constant_predictor(problem, tmp_path)
    assert vars(predictor) == {"constants": values, "num_classes": 19}


def test_jit_is_on_where_it_pays(monkeypatch, capsys):
    assert setup.choose_jit(TrainOptions(jit="on")) is True
    assert setup.choose_jit(TrainOptions(jit="off")) is False
    assert capsys.readouterr().out == ""
    for device, expected in (("cpu:0", False), ("gpu:0", True)):
        monkeypatch.setattr(
            keras.distribution, "list_devices", lambda device=device: [device]
        )
        assert setup.choose_jit(TrainOptions(jit="auto")) is expected
        assert device[:3] in capsys.readouterr().out


def test_what_jax_does_not_compile_is_slow(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0"])
    assert setup.choose_jit(TrainOptions(jit="auto")) is True


def test_a_row_is_scored_on_a_split_on_which_nothing_was_chosen(tmp_path, monkeypatch):
    """The scores are those of the last step, and are made up for if they are missing;
    Keras's own evaluation finds the same."""
    sizes = {"train": 8, "val": 4, "test": 6}
    monkeypatch.setattr(records, "STREETS_SIZES", sizes)
    options = make_options(
        tmp_path / "depth-seed0",
        recipe="D/depth",
        tasks=("depth",),
        weighting="fixed",
        backbone="small",
        batch_size=4,
        epochs=2,
        data_dir=str(tmp_path),
        resume=True,
    )
    train.train(options, export=False)
    directory = tmp_path / "depth-seed0"
    found = runs.read_result(directory / "test_result.json")
    constant = runs.read_result(directory / "constant_test_result.json")
    assert found.keys() == constant.keys() == {"depth/mean_abs", "depth/rms"}
    (directory / "test_result.json").unlink()
    train.train(options, export=False)
    assert runs.read_result(directory / "test_result.json") == found
    problem = open_problem(options)
    trainer = build_trainer(options)
    runs.restore_last(trainer, directory)
    trainer.compile()
    batches = problem.make_batches("test", 4)
    expected = trainer.evaluate(batches, return_dict=True, verbose=0)
    for key, value in found.items():
        assert value == pytest.approx(expected[key], rel=1e-5), key
    assert found != runs.read_result(directory / "result.json")
    weights = directory / "checkpoints" / "last" / "latest.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1])
    (directory / "test_result.json").unlink()
    with pytest.raises(UserError, match="latest.weights.h5.*train the run again"):
        runs.restore_last(trainer, directory)


def test_a_last_batch_is_predicted_without_another_trace(set_policy):
    network = build_trainer(make_options("x", tasks=("depth",))).network
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 64, 3), "uint8")
    whole = evaluation.predict_batch(network, images, 5)["depth"]
    first = evaluation.predict_batch(network, images[:3], 3)["depth"]
    traces = network.predict_function.experimental_get_tracing_count()
    last = evaluation.predict_batch(network, images[3:], 3)["depth"]
    assert network.predict_function.experimental_get_tracing_count() == traces
    assert last.shape == (2, 32, 64, 1)
    np.testing.assert_allclose(np.concatenate([first, last]), whole, atol=1e-4)
