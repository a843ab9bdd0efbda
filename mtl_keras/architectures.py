"""The networks to choose from, and their sizes."""

from typing import NamedTuple


class Backbone(NamedTuple):
    """Size of a ResNet v1: bottleneck blocks of each of the four stages and width of
    the first stage's 3x3 convolutions; and width of what goes on top of it: the heads
    of `mtl`, and the pyramid's branches and the heads of `kendall`."""

    blocks: tuple[int, int, int, int]
    width: int
    head_width: int
    aspp_width: int


BACKBONES = {
    "small": Backbone((1, 1, 1, 1), 20, 32, 32),
    "resnet50": Backbone((3, 4, 6, 3), 64, 512, 256),
    "resnet101": Backbone((3, 4, 23, 3), 64, 512, 256),
    "resnet152": Backbone((3, 8, 36, 3), 64, 512, 256),
}

ARCHITECTURES = ("mtl", "kendall")
DECODERS = ("resize_conv", "direct")
