"""The child process of `benchmarks.train_step`: one variant of the training step."""

import functools
import json
import resource
import sys
import time

from benchmarks.flops import count_jax, count_tensorflow, count_torch
from benchmarks.processes import end_with_parent, serve
from benchmarks.variants import Variant
from benchmarks.workload import build_trainer, make_batch
from mtl_keras.experiments.environment import describe

# Large enough for the full rate, small enough for a second.
MATMUL_SIZES = {"CPU": 4096, "GPU": 8192}
LEARNING_RATE = 1e-4


class Program:
    """A variant ready to run.

    `train`, `forward` and `matmul` start one pass and return what `wait` waits for:
    a training step, a forward pass in inference mode, and the product of a large
    square with itself, in the precision of the variant.
    """

    @property
    def matmul_size(self):
        return MATMUL_SIZES["CPU" if self.device == "CPU" else "GPU"]

    def time(self, kind, count):
        """Seconds a pass, the mean of `count`, after one more if there are several."""
        start_pass = getattr(self, kind)
        if count > 1:
            self.wait(start_pass())
        start = time.perf_counter()
        for _ in range(count):
            result = start_pass()
        self.wait(result)
        return (time.perf_counter() - start) / count

    def count_flops(self):
        """Floating-point operations of each kind of pass, see `benchmarks.flops`."""
        return {**self.count_passes(), "matmul": 2 * self.matmul_size**3}

    def measure_peak_memory(self):
        """Bytes: of the device if there is one, else of this process."""
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return self.measure_peak_device_memory() or 1024 * kibibytes

    def describe(self):
        return {**describe(self.packages), "device": self.device}


class TensorFlowProgram(Program):
    packages = ("tensorflow", "keras", "numpy")
    environment = {"KERAS_BACKEND": "tensorflow", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}

    def __init__(self, variant):
        import tensorflow as tf

        self.tf = tf
        self.gpus = tf.config.list_physical_devices("GPU")
        self.device = "CPU"
        if self.gpus:
            details = tf.config.experimental.get_device_details(self.gpus[0])
            self.device = details["device_name"]
        self.precision = variant.precision
        self.trainer = build_trainer(
            variant.policy(), variant.jit, **variant.network_options()
        )
        self.trainer.make_train_function()
        self.batch = tf.nest.map_structure(
            tf.constant, make_batch(variant.batch_size, variant.image_size)
        )
        self.infer = tf.function(
            lambda images: self.trainer(images, training=False), jit_compile=variant.jit
        )

    @functools.cached_property
    def square(self):
        square = self.tf.random.normal((self.matmul_size, self.matmul_size))
        return self.tf.cast(square, self.precision)

    def train(self):
        return self.trainer.train_function(iter([self.batch]))

    def forward(self):
        return self.infer(self.batch[0])

    def matmul(self):
        return self.tf.matmul(self.square, self.square)

    def wait(self, _):
        self.tf.test.experimental.sync_devices()

    def count_passes(self):
        step = self.tf.function(self.trainer.train_step)
        graphs = {
            "train": step.get_concrete_function(self.batch).graph,
            "forward": self.infer.get_concrete_function(self.batch[0]).graph,
        }
        return {
            kind: sum(count_tensorflow(graph).values())
            for kind, graph in graphs.items()
        }

    def measure_peak_device_memory(self):
        if not self.gpus:
            return None
        return self.tf.config.experimental.get_memory_info("GPU:0")["peak"]


class JaxProgram(Program):
    packages = ("jax", "jaxlib", "keras", "numpy")
    environment = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    def __init__(self, variant):
        import jax

        self.jax = jax
        self.jax_device = jax.devices()[0]
        self.device = "CPU"
        if self.jax_device.platform != "cpu":
            self.device = self.jax_device.device_kind
        self.precision = variant.precision
        trainer = build_trainer(variant.policy(), **variant.network_options())
        trainer.make_train_function()
        self.trainer = trainer
        groups = (
            trainer.trainable_variables,
            trainer.non_trainable_variables,
            trainer.optimizer.variables,
            trainer.metrics_variables,
        )
        self.state = tuple([variable.value for variable in group] for group in groups)
        self.batch = jax.device_put(make_batch(variant.batch_size, variant.image_size))
        self.infer = jax.jit(
            lambda trainable, others, images: trainer.stateless_call(
                trainable, others, images, training=False
            )[0]
        )
        self.multiply = jax.jit(lambda square: square @ square)

    @functools.cached_property
    def square(self):
        key, shape = self.jax.random.key(0), (self.matmul_size, self.matmul_size)
        return self.jax.random.normal(key, shape, self.precision)

    def train(self):
        # The old state is donated to the step, as in `fit`.
        _, self.state = self.trainer.train_function(self.state, iter([self.batch]))
        return self.state

    def forward(self):
        return self.infer(*self.state[:2], self.batch[0])

    def matmul(self):
        return self.multiply(self.square)

    def wait(self, result):
        self.jax.block_until_ready(result)

    def count_passes(self):
        step = self.jax.make_jaxpr(self.trainer.train_step)(self.state, self.batch)
        infer = self.jax.make_jaxpr(self.infer)(*self.state[:2], self.batch[0])
        return {"train": count_jax(step.jaxpr), "forward": count_jax(infer.jaxpr)}

    def measure_peak_device_memory(self):
        return (self.jax_device.memory_stats() or {}).get("peak_bytes_in_use")


class TorchProgram(Program):
    packages = ("torch", "numpy")
    environment = {}

    def __init__(self, variant):
        import torch

        from benchmarks import torch_twin

        if (variant.architecture, variant.decoder) != ("mtl", "resize_conv"):
            raise ValueError("The PyTorch twin is the mtl network with resize_conv.")
        self.torch = torch
        self.device, self.kind = "CPU", "cpu"
        if torch.cuda.is_available():
            self.device, self.kind = torch.cuda.get_device_name(), "cuda"
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # as XLA
        self.precision = getattr(torch, variant.precision)
        twin = torch_twin.Twin(variant.backbone, variant.image_size)
        self.twin = twin.to(self.kind, memory_format=torch.channels_last)
        self.network = torch.compile(self.twin) if variant.jit else self.twin
        self.weighting = torch_twin.LearnedWeighting().to(self.kind)
        self.compute_losses = torch_twin.compute_losses
        self.optimizer = torch_twin.make_optimizer(
            self.twin, self.weighting, LEARNING_RATE
        )
        self.autocast = torch.autocast(
            self.kind, torch.bfloat16, enabled=self.precision == torch.bfloat16
        )
        batch = make_batch(variant.batch_size, variant.image_size)
        self.images, *self.labels = (
            torch_twin.to_torch(part, self.kind) for part in batch
        )

    @functools.cached_property
    def square(self):
        shape = (self.matmul_size, self.matmul_size)
        return self.torch.randn(shape, device=self.kind).to(self.precision)

    def train(self):
        self.twin.train()
        self.optimizer.zero_grad()
        with self.autocast:
            outputs = self.network(self.images)
        self.weighting(self.compute_losses(outputs, *self.labels)).backward()
        self.optimizer.step()

    def forward(self):
        self.twin.eval()
        with self.torch.inference_mode(), self.autocast:
            return self.network(self.images)

    def matmul(self):
        return self.square @ self.square

    def wait(self, _):
        if self.kind == "cuda":
            self.torch.cuda.synchronize()

    def count_passes(self):
        compiled, self.network = self.network, self.twin  # the counter sees eager ops
        counts = {
            "train": count_torch(self.train),
            "forward": count_torch(self.forward),
        }
        self.network = compiled
        return counts

    def measure_peak_device_memory(self):
        return self.torch.cuda.max_memory_allocated() if self.kind == "cuda" else None


PROGRAMS = {
    "tensorflow": TensorFlowProgram,
    "jax": JaxProgram,
    "torch": TorchProgram,
}


def main():
    end_with_parent()
    variant = Variant(**json.loads(sys.argv[1]))
    serve(PROGRAMS[variant.framework](variant))


if __name__ == "__main__":
    main()
