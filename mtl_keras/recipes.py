"""Named settings of `train.py`, each value with its source.

"The original" is the code at github.com/ranandalon/mtl, "the paper" is Kendall,
Gal and Cipolla, CVPR 2018 (arXiv 1705.07115).
"""

RECIPES = {
    # A small network that shows everything at work on two cores in minutes. All
    # values were chosen on the rendered scenes; they are the defaults of TrainOptions.
    "demo": {},
    # The original: the Single / Dual / All table.
    "mtl": {
        "backbone": "resnet101",  # the original, src/models.py
        "pretrained": True,  # the original starts from ImageNet weights
        "image_size": (128, 256),  # the original and the paper, Tiny Cityscapes
        "label_set": "ids",  # the original: 34 channels, all label ids
        "likelihoods": dict.fromkeys(("semantic", "instance", "depth"), "mtl"),
        "initial_variance": (0.2, 1.0),  # the original, utils/loss_handler.py
        "optimizer": "adam",  # the original, src/train.py
        "learning_rate": 1e-4,  # not published: the original's config.py is missing
        "schedule": "constant",  # the original, src/train.py
        "weight_decay": 0.0,  # the original has none
        "sigma_learning_rate_factor": 10.0,  # ours: the original moves s by 1
        "batch_size": 8,  # the paper, appendix A, Tiny Cityscapes
        "epochs": 135,  # the paper, appendix A: 50,000 iterations of 8 of 2975
        "flip": True,  # the paper, appendix A
    },
}
