"""The activation store: HDF5 shards that are there whole or not at all, with checksums, origins and labels.

Writing: `StoreWriter`, told what is to come by `Examples` (made by `ExamplesBuilder`). Reading: `open_store`.
Importing this does not import torch; the readers that give tensors do, when they are used.
"""

from workbench.cache.builder import ExamplesBuilder
from workbench.cache.codes import Codes
from workbench.cache.codes_writer import CodesWriter
from workbench.cache.errors import Damage, DamageError, StoreError
from workbench.cache.examples import Examples, RowContext
from workbench.cache.int8 import dequantize, quantize
from workbench.cache.labels import LabelInfo
from workbench.cache.loader import Sequential, Shuffled
from workbench.cache.narrow import narrow, widen
from workbench.cache.reader import Store, open_store
from workbench.cache.schema import SCHEMA, ActivationSpec
from workbench.cache.tensors import to_array, to_tensor
from workbench.cache.writer import StoreWriter

__all__ = [
    "SCHEMA",
    "ActivationSpec",
    "Codes",
    "CodesWriter",
    "Damage",
    "DamageError",
    "Examples",
    "ExamplesBuilder",
    "LabelInfo",
    "RowContext",
    "Sequential",
    "Shuffled",
    "Store",
    "StoreError",
    "StoreWriter",
    "dequantize",
    "narrow",
    "open_store",
    "quantize",
    "to_array",
    "to_tensor",
    "widen",
]
