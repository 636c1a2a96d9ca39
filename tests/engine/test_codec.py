# SPDX-License-Identifier: Apache-2.0
"""Compressed embeddings: fewer bytes on the wire, and answers within a stated distance of a single server's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.bench.codec.answers import ask
from tests.bench.codec.cases import question, questions, trial_images
from tests.bench.codec.results import Distance
from tests.engine import calls
from tests.engine.gauges import metrics, pool
from tests.engine.stages import post
from tests.engine.system import MODEL, System
from tests.engine.test_topologies import fleet
from tests.engine.traffic import Json

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Bounds:
    """1.25 (the row errors of fp8) to 2.5 times what `make bench ARGS="--only codec"` has found for the same requests.

    Attributes:
        ratio: of the bytes as they are.
        row_error: of the worst row, relative in the Euclidean norm.
        mean: of the differences of log probabilities from the single server's, in nats.
        worst: the largest of them.
    """

    ratio: float
    row_error: float
    mean: float
    worst: float


BOUNDS = {"int8": Bounds(0.26, 0.025, 0.06, 0.5), "fp8": Bounds(0.26, 0.04, 0.25, 1.8)}


def asked() -> list[Json]:
    """The requests of the benchmark."""
    return [{**each, "model": MODEL} for each in questions()]


async def pool_of(router: str, role: str) -> tuple[str, Json]:
    """The URL and the embedding pool of the one instance of a role."""
    async with calls.client() as client:
        listed = (await client.get(f"{router}/epd/instances")).json()["instances"]
    (url,) = [each["url"] for each in listed if each["roles"] == role]
    return url, await pool(url)


async def distance(system: System, router: str) -> Distance:
    """Of the tokens of the single server's answers, up to the first that the topology has not chosen."""
    differences: list[float] = []
    for each in asked():
        wanted, found = await ask(system.single, each), await ask(router, each)
        differences += wanted.differences(found)
    return Distance.of(differences)


@pytest.mark.parametrize("codec", BOUNDS)
async def test_answers_stay_close_for_a_quarter_of_the_bytes(
    system: System, tmp_path: Path, codec: str, record_property: Callable[[str, object], None]
) -> None:
    bounds = BOUNDS[codec]
    with fleet(system, "1E1PD", tmp_path, uuid4().hex, "--epd-embedding-codec", codec) as router:
        for image in trial_images():
            await post(router, {**question([image]), "model": MODEL, "max_tokens": 1})
        encoder, made_before = await pool_of(router, "encode")
        _, fetched_before = await pool_of(router, "prefill+decode")
        assert made_before["codec_state"] == "active", made_before
        assert 0 < made_before["codec_error"] < bounds.row_error
        found = await distance(system, router)
        _, made = await pool_of(router, "encode")
        _, fetched = await pool_of(router, "prefill+decode")
        measured = await metrics(encoder)
    record_property("distance", str(found))
    assert 0 < found.mean < bounds.mean, found
    assert found.worst < bounds.worst, found
    raw_bytes = made["raw_bytes"] - made_before["raw_bytes"]
    fetched_bytes = fetched["fetched_bytes"] - fetched_before["fetched_bytes"]
    assert fetched["fetched"] - fetched_before["fetched"] == made["encoded"] - made_before["encoded"] > 0
    assert 0 < fetched_bytes <= raw_bytes * bounds.ratio
    assert measured["vllm_epd:embedding_pool_codec_active"] == 1
    assert measured["vllm_epd:embedding_pool_raw_bytes_total"] == made["raw_bytes"]
