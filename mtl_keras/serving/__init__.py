"""What leaves the training machine: exported networks, and answers about pictures."""

from mtl_keras.serving.formats import build_serving_model, export
from mtl_keras.serving.model_card import ModelFacts

__all__ = ["ModelFacts", "build_serving_model", "export"]
