"""Named settings of `train.py`, each value with its source, and the published tables.

"The original" is the code at github.com/ranandalon/mtl, "the paper" is Kendall,
Gal and Cipolla, CVPR 2018 (arXiv 1705.07115), "Oxford" is the reproduction at
github.com/oscarkey/multitask-learning, "LibMTL" the library at
github.com/median-research-group/LibMTL. docs/FAITHFULNESS.md says
where they differ from each other and from this package.
"""

from typing import Any, NamedTuple

# What there is to learn from, and the kind of its tasks, see `tasks.tasks_of`.
DATASETS = {
    "scenes": "scenes",
    "fashion_mnist": "small_images",
    "digits": "small_images",
}
WEIGHTINGS = ("learned", "fixed", "dwa", "rlw", "gls", "uw-so", "log-sum")
SCENE_TASKS = ("semantic", "instance", "depth")  # of the paper
SMALL_IMAGE_TASKS = ("class", "reconstruction")
MTAN_TASKS = ("semantic", "depth")

RECIPES = {
    # A small network that shows everything at work on two cores in minutes. All
    # values were chosen on the rendered scenes; they are the defaults of TrainOptions.
    "demo": {},
    # The original: the Single / Dual / All table.
    "original": {
        "backbone": "resnet101",  # the original, src/models.py
        "pretrained": True,  # the original starts from ImageNet weights
        "image_size": (128, 256),  # the original and the paper, Tiny Cityscapes
        "label_set": "label_ids",  # the original: 34 channels, all label ids
        "likelihoods": dict.fromkeys(SCENE_TASKS, "mtl"),
        "initial_variance": (0.2, 1.0),  # the original, utils/loss_handler.py
        "optimizer": "adam",  # the original, src/train.py
        "learning_rate": 1e-4,  # ours: the original's config.py is missing
        "schedule": "constant",  # the original, src/train.py
        "weight_decay": 0.0,  # the original declares one and never adds it to the loss
        # Ours: Adam moves the original's variable, sigma^2 itself, like every weight.
        "sigma_learning_rate_factor": 10.0,
        # The original's batch and length are not known, and it does not flip.
        "batch_size": 8,  # the paper, appendix A, Tiny Cityscapes
        "epochs": 135,  # the paper, appendix A: 50,000 iterations of 8 of 2975
        "flip": True,  # the paper, appendix A
    },
    # The paper: the Tiny Cityscapes table, which Oxford set out to reproduce.
    "kendall": {
        "architecture": "kendall",  # the paper, section 4 and appendix A
        "backbone": "resnet101",  # the paper, appendix A
        "pretrained": True,  # Oxford, cityscapestask/main.py; the paper does not say
        "image_size": (128, 256),  # the paper, section 5.1, Tiny Cityscapes
        "label_set": "train_ids",  # the 19 of the benchmark; the paper's text says 20
        "likelihoods": {
            "semantic": "softmax",  # the paper, eq. 10
            "instance": "gaussian",  # the paper, eq. 10, with an L1 loss in it
            "depth": "gaussian",
        },
        "initial_variance": (1.0, 1.0),  # s = 0; any of -2..5 will do: appendix B
        "optimizer": "sgd",  # the paper, appendix A: Nesterov, momentum 0.9
        "learning_rate": 2.5e-3,  # the paper, appendix A
        "schedule": "poly",  # the paper, appendix A: power 0.9
        # The paper prints 10^4 and must mean 1e-4, as a term of the gradient, which
        # momentum 0.9 makes ten times as strong as Keras's decoupled decay.
        "weight_decay": 1e-3,
        "sigma_learning_rate_factor": 1.0,  # the paper: s is trained like the rest
        "batch_size": 8,  # the paper, appendix A
        "epochs": 135,  # the paper, appendix A: 50,000 iterations of 8 of 2975
        "flip": True,  # the paper, appendix A. Its crops of 256x256 are larger than
        # the images (128x256): here the whole image is used
    },
    # Classification and reconstruction of Fashion-MNIST: Oxford's third table, by Adam
    # at 1e-4. The reconstruction has an absolute error, as in Oxford's code; its README
    # says L2.
    "fashion": {
        "dataset": "fashion_mnist",
        "tasks": SMALL_IMAGE_TASKS,
        # Oxford, mnisttask/mnist_loss.py
        "likelihoods": {"class": "softmax", "reconstruction": "gaussian"},
        "initial_variance": (2.718, 2.718),  # s = 1: Oxford, mnisttask/mnist.py
        "optimizer": "adam",  # Oxford, mnisttask/mnist.py, as the next four
        "learning_rate": 1e-4,
        "schedule": "constant",
        "weight_decay": 0.0,
        "batch_size": 64,
        "sigma_learning_rate_factor": 1.0,  # Oxford trains s like the rest
        "epochs": 80,  # Oxford, notebooks/mnist_results.ipynb reads the 80th
    },
    # The protocol of most papers on loss weightings: MTAN's arrays of Cityscapes, with
    # the settings of LibMTL's examples/cityscapes, whose network is the nearest here.
    "mtan": {
        "tasks": MTAN_TASKS,
        # LibMTL, main.py: DeepLab heads on a dilated ResNet-50. Each of its tasks has a
        # pyramid of its own, here they share one.
        "architecture": "kendall",
        "backbone": "resnet50",
        "pretrained": True,  # LibMTL, examples/cityscapes/README.md
        "image_size": (128, 256),  # the arrays
        "label_set": "categories",  # LibMTL, main.py: 7 classes
        "sky": "masked",  # the arrays: depth is valid where it is not 0
        # LibMTL, weighting/UW.py, and MTAN, utils.py: L / (2 sigma^2) + log sigma
        "likelihoods": dict.fromkeys(MTAN_TASKS, "gaussian"),
        # LibMTL, weighting/UW.py: log sigma^2 starts at -0.5. Its depth is in another
        # unit, in which the same variance is 32 times as large in ours.
        "initial_variance": (0.6065, 0.6065),
        "optimizer": "adam",  # LibMTL, config.py
        "learning_rate": 1e-4,  # LibMTL, config.py
        # LibMTL, config.py: StepLR, times 0.5 every 100 of 200 epochs
        "schedule": "halved",
        "weight_decay": 1e-5,  # LibMTL, config.py; there a term of Adam's gradient
        "sigma_learning_rate_factor": 1.0,  # MTAN: one optimizer for all
        "batch_size": 64,  # LibMTL, main.py
        "epochs": 200,  # LibMTL, main.py
        "flip": False,  # LibMTL, create_dataset.py: no augmentation
    },
}


# The paper at full resolution, its table 2. No network of it has been trained here.
RECIPES["kendall-full"] = {
    **RECIPES["kendall"],
    "image_size": (1024, 2048),  # the paper, appendix A.1, as the rest
    "records": "source",
    "crop": (512, 512),
    "scales": (0.7, 2.0),
    "batch_size": 16,
    "steps": 100_000,
}

# The paper: figure 2, fixed weights from one task to another.
RECIPES["figure2"] = {
    **RECIPES["kendall"],
    "learning_rate": 1e-2,  # the paper, caption of figure 2
}


class Table(NamedTuple):
    """A published table.

    `recipe` names its settings; `stand_in` is what differs where its own data set
    is replaced by one that comes with this package; `rows` holds what differs from
    row to row; `metrics` are its columns.
    """

    title: str
    recipe: str
    stand_in: dict
    rows: dict
    metrics: tuple


def fixed_row(**weights: float) -> dict[str, Any]:
    """Settings for fixed weights; a task that is not given is not trained."""
    return {"tasks": tuple(weights), "weighting": "fixed", "task_weights": weights}


def other_row(weighting: str, *tasks: str) -> dict[str, Any]:
    """Settings for one of `WEIGHTINGS` that needs no others."""
    return {"tasks": tasks, "weighting": weighting, "task_weights": {}}


def learned_row(*tasks: str, **settings: Any) -> dict[str, Any]:
    """Settings for learned weights."""
    return {"tasks": tasks, "weighting": "learned", "task_weights": {}, **settings}


def _scene_rows(tuned, laplace):
    third = 1 / 3
    return {
        "semantic": fixed_row(semantic=1.0),
        "instance": fixed_row(instance=1.0),
        "depth": fixed_row(depth=1.0),
        "equal": fixed_row(semantic=third, instance=third, depth=third),
        "tuned": fixed_row(**tuned),
        "semantic+instance": learned_row("semantic", "instance"),
        "semantic+depth": learned_row("semantic", "depth"),
        "instance+depth": learned_row("instance", "depth"),
        "all": learned_row(*SCENE_TASKS),
        # What an absolute error is the likelihood of: the paper names it after eq. 5,
        # Oxford's report found it missing. No figures are published.
        "all-laplace": learned_row(*SCENE_TASKS, likelihoods=laplace),
    }


# Of the unit of MTAN's depth, per pixel of images that are 256 wide: the weight that
# turns our loss of depth into the protocol's.
_MTAN_DEPTH = 256 * (2048 / 256) / 65535

# An offset counts as one number with the error |dy| + |dx|, whose mean is b.
_LAPLACE = {"semantic": "softmax", "instance": "laplace", "depth": "laplace"}

# Rendered streets on two cores, for every row alike. The learning rate is the best
# that was tried for A, and between the best ones of B's rows (docs/RESULTS.md).
_STREETS = {
    "backbone": "small",
    "pretrained": False,
    "image_size": (64, 128),
    "optimizer": "adam",
    "learning_rate": 8e-3,
    "schedule": "cosine",
    "weight_decay": 1e-4,
    "sigma_learning_rate_factor": 10.0,
    "batch_size": 8,
    "epoch_steps": 250,
}

TABLES = {
    "A": Table(
        "Tiny Cityscapes",
        "kendall",
        {**_STREETS, "steps": 1400},
        _scene_rows({"semantic": 0.89, "instance": 0.01, "depth": 0.1}, _LAPLACE),
        ("semantic/miou", "instance/mean_abs", "depth/mean_abs"),
    ),
    "B": Table(
        "Single / Dual / All",
        "original",
        {**_STREETS, "steps": 1000},
        _scene_rows({"semantic": 0.8, "instance": 0.05, "depth": 0.15}, _LAPLACE),
        ("semantic/miou", "instance/rms", "depth/rms"),
    ),
    "C": Table(
        "Classification and reconstruction",
        "fashion",
        # The 1297 digits are learned by heart: their cross entropy falls towards 0,
        # and its learned weight grows without bound. Hence a slow s, from the
        # recipe, and a weight decay that helps most rows.
        {
            "learning_rate": 5e-3,
            "schedule": "cosine",
            "weight_decay": 0.1,
            "initial_variance": (1.0, 1.0),
            "epochs": 120,
        },
        {
            "class": fixed_row(**{"class": 1.0}),
            "reconstruction": fixed_row(reconstruction=1.0),
            "equal": fixed_row(**{"class": 0.5, "reconstruction": 0.5}),
            "tuned": fixed_row(**{"class": 0.4, "reconstruction": 0.6}),
            "all": learned_row(*SMALL_IMAGE_TASKS),
            "all-laplace": learned_row(
                *SMALL_IMAGE_TASKS,
                likelihoods={"class": "softmax", "reconstruction": "laplace"},
            ),
        },
        ("class/accuracy", "reconstruction/mean_abs"),
    ),
    "mtan": Table(
        "MTAN's protocol",
        "mtan",
        {**_STREETS, "steps": 1000},
        {
            "semantic": fixed_row(semantic=1.0),
            "depth": fixed_row(depth=1.0),
            "equal": fixed_row(semantic=1.0, depth=_MTAN_DEPTH),
            "all": learned_row(*MTAN_TASKS),
        },
        (
            "semantic/miou",
            "semantic/pixel_accuracy",
            "depth/abs_err",
            "depth/rel_err",
        ),
    ),
}

# Ours: other ways to weigh the losses, on the network and the data of table A.
_ROWS_OF_A = TABLES["A"].rows
TABLES["D"] = TABLES["A"]._replace(
    title="Loss weightings",
    rows={
        **{
            key: _ROWS_OF_A[key]
            for key in ("semantic", "instance", "depth", "equal", "tuned", "all")
        },
        "all-laplace": _ROWS_OF_A["all-laplace"],
        "priority": learned_row(*SCENE_TASKS, priorities={"semantic": 3.0}),
        **{
            name: other_row(name, *SCENE_TASKS)
            for name in WEIGHTINGS
            if name not in ("learned", "fixed")
        },
    },
)

# Every row can be trained by itself: train.py --recipe A/all
RECIPES |= {
    f"{name}/{key}": {**RECIPES[table.recipe], **settings}
    for name, table in TABLES.items()
    for key, settings in table.rows.items()
}
