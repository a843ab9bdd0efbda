"""What can be measured: variants of the training step, as options and in words."""

import argparse
import dataclasses

from mtl_keras.experiments.arguments import parse_size


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network and how it is run.

    The framework `torch` is `benchmarks.torch_twin`, in channels_last and, for
    bfloat16, under autocast; the others are Keras on that backend, for bfloat16
    under the policy `mixed_bfloat16`. `jit` is XLA in TensorFlow and `torch.compile`
    in PyTorch. JAX compiles in any case.
    """

    framework: str = "tensorflow"
    architecture: str = "mtl"
    backbone: str = "resnet101"
    decoder: str = "resize_conv"
    precision: str = "float32"
    batch_size: int = 4
    image_size: tuple[int, int] = (128, 256)
    jit: bool = False

    def __post_init__(self):
        size = tuple(self.image_size)  # JSON knows lists only
        object.__setattr__(self, "image_size", size)

    def network_options(self):
        names = ("architecture", "backbone", "decoder", "image_size")
        return {name: getattr(self, name) for name in names}

    def policy(self):
        """The dtype policy of Keras."""
        return "mixed_bfloat16" if self.precision == "bfloat16" else self.precision

    def in_words(self, fields=None):
        """All or some fields, such as `resnet101, batch 4`."""
        words = {
            **dataclasses.asdict(self),
            "batch_size": f"batch {self.batch_size}",
            "image_size": "{}x{}".format(*self.image_size),
            "jit": "compiled" if self.jit else "",
        }
        chosen = [words[field] for field in fields or words if words[field]]
        return ", ".join(chosen) or "not compiled"


FIELDS = tuple(field.name for field in dataclasses.fields(Variant))
CHOICES = {
    "framework": ("tensorflow", "jax", "torch"),
    "precision": ("float32", "bfloat16"),
    "jit": ("yes", "no"),
}


def parse_fields(text):
    """`"batch_size=1,jit=yes"` to a dict of fields of `Variant`."""
    parsers = {"image_size": parse_size, "batch_size": int, "jit": "yes".__eq__}
    fields = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in FIELDS:
            raise argparse.ArgumentTypeError(
                f"{pair!r} is not FIELD=VALUE; the fields are {', '.join(FIELDS)}"
            )
        if value not in CHOICES.get(name, [value]):
            raise argparse.ArgumentTypeError(
                f"{pair!r}: choose from {', '.join(CHOICES[name])}"
            )
        fields[name] = parsers.get(name, str)(value)
    return fields


def split_fields(variants):
    """The names of the fields in which variants agree, and of those in which they
    differ."""
    values = {field: {getattr(v, field) for v in variants} for field in FIELDS}
    agreeing = [field for field in FIELDS if len(values[field]) == 1]
    return agreeing, [field for field in FIELDS if field not in agreeing]
