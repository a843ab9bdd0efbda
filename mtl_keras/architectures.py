"""The networks to choose from, and their sizes."""

from typing import NamedTuple


class Backbone(NamedTuple):
    """The size of a ResNet v1 and of what stands on top of it.

    Attributes:
        blocks: number of bottleneck blocks in each of the four stages.
        width: channels of the 3x3 convolutions of the first stage.
        head_width: channels of the heads of `mtl`.
        aspp_width: channels of the pyramid's branches and of the heads of `kendall`.

    References:
     - [He et al., 2015](https://arxiv.org/abs/1512.03385), table 1
    """

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
