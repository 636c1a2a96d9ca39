# SPDX-License-Identifier: Apache-2.0
"""Random weights that are the same wherever they are made.

A model is described as a mapping from tensor name to `Fill`. Each tensor has a random generator of its own,
seeded from the model's seed and the tensor's name, so neither order nor neighbours matter.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Fill:
    """What one tensor is filled with: uniform values of a given mean and standard deviation.

    Attributes:
        zero_rows: rows set to zero afterwards.
    """

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    zero_rows: tuple[int, ...] = ()

    def array(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Draw the tensor."""
        # Uniform, not normal: its values are exact everywhere, a logarithm may differ between processors.
        half_width = self.std * math.sqrt(3)
        unit = rng.random(self.shape, dtype=np.float32) * 2 - 1
        values: NDArray[np.float32] = (unit * half_width + self.mean).astype(np.float32)
        values[list(self.zero_rows)] = 0
        return values


Fills = dict[str, Fill]


def matrix(rows: int, *fan_in: int, gain: float = 1.0, zero_rows: tuple[int, ...] = ()) -> Fill:
    """A matrix or convolution kernel that turns inputs of unit variance into outputs of variance `gain`²."""
    return Fill((rows, *fan_in), gain / math.sqrt(math.prod(fan_in)), zero_rows=zero_rows)


def linear(name: str, rows: int, *fan_in: int, bias: bool = True, gain: float = 1.0) -> Fills:
    """The weight, and the bias if wanted, of a linear layer or a convolution."""
    fills = {f"{name}.weight": matrix(rows, *fan_in, gain=gain)}
    return fills | {f"{name}.bias": Fill((rows,), 0.1)} if bias else fills


def norm(name: str, size: int, *, bias: bool = True) -> Fills:
    """The weight of a normalisation, near one, and its bias if it has one."""
    fills = {f"{name}.weight": Fill((size,), 0.1, mean=1.0)}
    return fills | {f"{name}.bias": Fill((size,), 0.1)} if bias else fills


def write_weights(folder: Path, fills: Mapping[str, Fill], seed: int) -> None:
    """Draw every tensor and write them as one safetensors file."""
    tensors = {name: fill.array(_generator(seed, name)) for name, fill in fills.items()}
    # Loaders refuse a file that does not name the framework whose layout it follows.
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
