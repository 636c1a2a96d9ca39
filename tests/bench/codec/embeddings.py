# SPDX-License-Identifier: Apache-2.0
"""Embeddings as a consumer gets them: fetched from encode instances by an agent in this process."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tests.bench.codec.cases import question
from tests.bench.codec.results import Embeddings
from tests.bench.errors import BenchError
from tests.engine.stages import Encoded, post
from tests.engine.traffic import Json
from tests.unit.transfer.parties import Party
from vllm_epd.transfer import wire
from vllm_epd.transfer.codec import row_errors
from vllm_epd.types import Fingerprint

POOL_BYTES = 256 << 20


async def encode(url: str, part: Json, salt: str) -> Encoded:
    """Have one image encoded and offered; what another salt names is another item."""
    offer = {"epd": {"offer": True}}
    answer = await post(url, {**question([part]), "max_tokens": 1, "cache_salt": salt, "ec_transfer_params": offer})
    ((key, item),) = answer["ec_transfer_params"].items()
    return Encoded(key, item["modality"], item["metadata"], item["handle"])


@dataclass(slots=True)
class Reader:
    """Fetches what encode instances offer."""

    party: Party
    numbers: Iterator[int]

    async def fetch_all(self, encoder: str, images: Sequence[Json], salt: str) -> list[torch.Tensor]:
        """The embeddings of images as one encode instance sends them."""
        return [self.fetch(await encode(encoder, image, salt)) for image in images]

    def fetch(self, item: Encoded) -> torch.Tensor:
        """The embedding as the model would get it."""
        number, handle = next(self.numbers), wire.handle_from_json(item.handle)
        report = self.party.pull(handle, number)
        if not isinstance(report, wire.Pulled):
            raise BenchError(f"an embedding could not be fetched: {report}")
        tensor = self.party.load(number, item.key)
        self.party.tell(wire.Drop(number, 1), wire.Release(handle))
        return tensor


@contextmanager
def open_reader(encoders: Sequence[Json]) -> Iterator[Reader]:
    """A reader that knows these encode instances, by what they say of themselves."""
    fingerprint = Fingerprint.from_mapping(encoders[0]["fingerprint"])
    party = Party(fingerprint=fingerprint, secret=b"", pool_bytes=POOL_BYTES, timeout_s=30.0)
    try:
        party.tell(wire.SetPeers({each["epoch"]: list(each["agents"]) for each in encoders}))
        yield Reader(party, itertools.count(1))
    finally:
        party.close()


def compare(exact: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Embeddings:
    """The errors of all rows of `found`."""
    errors = torch.cat([row_errors(one, other) for one, other in zip(exact, found, strict=True)])
    return Embeddings(
        items=len(exact),
        rows=len(errors),
        raw_bytes=sum(tensor.nbytes for tensor in exact) / len(exact),
        mean_error=float(errors.mean()),
        worst_error=float(errors.amax()),
    )
