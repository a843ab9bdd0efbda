"""Votes for instance centres: made from instance ids and decoded to objects."""

from mtl_keras.instances.decoding import cluster_offsets, decode_objects
from mtl_keras.instances.offsets import encode_offsets

__all__ = ["cluster_offsets", "decode_objects", "encode_offsets"]
