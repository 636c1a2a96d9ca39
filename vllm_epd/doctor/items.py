# SPDX-License-Identifier: Apache-2.0
"""What doctor's two instances agree on beforehand, so that nothing has to be copied from one to the other."""

import hashlib
import os

import torch

from vllm_epd.transfer.handshake import Identity
from vllm_epd.types import TOKEN_ENV, Fingerprint

PRODUCER_EPOCH = "doctor"
"""Of every producer of doctor's. What protects it is the shared secret."""

KEYS_PER_SIZE = 3
"""A consumer that has room for two never finds the next one of three here."""

_FINGERPRINT = Fingerprint("doctor", "doctor", "uint8", "doctor", "doctor")


def identity(epoch: str) -> Identity:
    """One of doctor's instances, with the secret of this environment."""
    return Identity(epoch, _FINGERPRINT, os.environ.get(TOKEN_ENV, "").encode())


def keys(nbytes: int) -> list[str]:
    """The items of one size."""
    return [f"doctor-{nbytes}-{number}" for number in range(KEYS_PER_SIZE)]


def content(key: str, nbytes: int) -> torch.Tensor:
    """The bytes of an item: the same wherever they are computed, and others for each key."""
    return torch.frombuffer(bytearray(hashlib.shake_256(key.encode()).digest(nbytes)), dtype=torch.uint8)
