# SPDX-License-Identifier: Apache-2.0
"""Embeddings are made once, kept within their bytes, and wait for room outside the engine."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.engine import calls
from tests.engine.adapters import make_adapter
from tests.engine.bad_requests import Bad, complaints, plain, send
from tests.engine.gauges import WAITING, metrics, pool
from tests.engine.mortals import Mortal, living, router_process
from tests.engine.own_router import described, own_router
from tests.engine.system import MODEL
from tests.engine.traffic import Answer, Json, ask, ask_all, bytes_part, chat, image_part
from vllm_epd.demo import ensure_model

pytestmark = [pytest.mark.engine, pytest.mark.slow]

FAMILY = "qwen2.5-vl"
ITEM_BYTES = 256 * 1024
"""The embedding of a 448 x 448 image in float32: 256 rows of 256 numbers."""
POOL_ITEMS = 4
POOL_BYTES = POOL_ITEMS * ITEM_BYTES
LOAD = 40
WAITING_HERE = "vllm_epd_router_waiting"
SOURCES = "vllm_epd_router_embeddings_total"
SLOWER = 1.4
"""How much longer a load may take through a small pool: nothing is encoded twice, and the rest is noise."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """One encoder with room for four items, one with plenty, and one instance for the language model."""

    router: str
    small: str
    large: str
    language_model: str


@pytest.fixture(scope="module")
def fleet(start_system: Callable[[str, str], object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("pool")
    model = ensure_model(FAMILY)
    adapters = [f"{name}={make_adapter(folder / name, model, seed)}" for seed, name in enumerate(("one", "two"))]
    options = ["--trust-request-mm-kwargs", "--enable-lora", "--max-lora-rank", "8", "--lora-modules", *adapters]
    with router_process(folder) as router:
        small = Mortal("encode", router, folder, [*options, "--epd-pool-bytes", str(POOL_BYTES)])
        large = Mortal("encode", router, folder, options)
        language_model = Mortal("prefill+decode", router, folder, options)
        with living((small, large, language_model)):
            yield Fleet(router, small.url, large.url, language_model.url)


async def encoded(fleet: Fleet) -> int:
    """How many embeddings the encoders have made so far."""
    return sum([(await pool(each))["encoded"] for each in (fleet.small, fleet.large)])


async def by_source(router: str) -> Counter[str]:
    """How many media parts have been encoded and reused, as the router counts them."""
    async with calls.client() as client:
        lines = (await client.get(f"{router}/metrics")).text.splitlines()
    samples = [line.rpartition(" ") for line in lines if line.startswith(SOURCES)]
    return Counter({name.partition('source="')[2].partition('"')[0]: int(float(value)) for name, _, value in samples})


async def test_ten_requests_for_one_image_through_two_encoders_encode_it_once(fleet: Fleet) -> None:
    before, sources = await encoded(fleet), await by_source(fleet.router)
    request = chat([image_part(9000)])
    answers = await ask_all(fleet.router, [request] * 10)
    assert len({answer.tokens for answer in answers}) == 1
    assert await encoded(fleet) - before == 1
    assert await by_source(fleet.router) - sources == Counter(encoded=1, reused=9)


async def test_an_encoder_does_not_encode_again_what_its_own_pool_holds(fleet: Fleet) -> None:
    """Each router starts without any knowledge of its own; the second image is gone from vLLM's own cache by then."""
    image, hits = chat([image_part(9010)]), (await pool(fleet.large))["hits"]
    first = await through(fleet, fleet.large, [image])
    before = await encoded(fleet)
    again = await through(fleet, fleet.large, [image])
    assert await encoded(fleet) == before
    assert (await pool(fleet.large))["hits"] > hits
    assert [answer.tokens for answer in again] == [answer.tokens for answer in first]


@pytest.mark.parametrize(
    "change",
    [{"mm_processor_kwargs": {"max_pixels": 200704}}, {"model": "one"}, {"model": "two"}, {"cache_salt": "pepper"}],
    ids=["processor arguments", "one adapter", "another adapter", "salt"],
)
async def test_the_same_bytes_under_other_conditions_are_encoded_again(fleet: Fleet, change: Json) -> None:
    await ask(fleet.router, chat([image_part(9020)]))
    before = await encoded(fleet)
    await ask(fleet.router, chat([image_part(9020)], **change))
    assert await encoded(fleet) - before == 1
    await ask(fleet.router, chat([image_part(9020)], **change))
    assert await encoded(fleet) - before == 1


async def test_adapters_differ_in_their_answers(fleet: Fleet) -> None:
    """Otherwise the test above would not tell one from the other."""
    answers = [await ask(fleet.router, chat([image_part(9030)], model=name)) for name in (MODEL, "one", "two")]
    assert len({answer.tokens for answer in answers}) == 3


async def test_forty_items_pass_a_pool_of_four_and_wait_outside_the_engine(
    fleet: Fleet, record_property: Callable[[str, object], None]
) -> None:
    took: dict[str, list[float]] = {fleet.small: [], fleet.large: []}
    for turn in range(2):
        requests = [chat([image_part(9100 + LOAD * turn + item)]) for item in range(LOAD)]
        answers = {}
        for encoder in (fleet.large, fleet.small):
            before, start = (await pool(encoder))["encoded"], time.monotonic()
            answers[encoder] = await through(fleet, encoder, requests, watched=encoder == fleet.small)
            took[encoder].append(time.monotonic() - start)
            assert (await pool(encoder))["encoded"] - before == LOAD, "none lost, none encoded twice"
        assert [a.tokens for a in answers[fleet.small]] == [a.tokens for a in answers[fleet.large]]
        assert len({answer.tokens for answer in answers[fleet.small]}) > LOAD // 2
    assert (await pool(fleet.small))["pinned"] == 0
    ratio = min(took[fleet.small]) / min(took[fleet.large])
    record_property("small_to_large_pool", round(ratio, 2))
    assert ratio < SLOWER, took


async def test_an_item_larger_than_the_pool_is_refused_with_both_sizes(fleet: Fleet) -> None:
    large = Bad(chat([bytes_part(plain(1008, 20))]))
    async with router_to(fleet, fleet.small) as router:
        response = await send(router, large)
        assert not complaints(response, 400, f"the embedding pool, which has {POOL_BYTES}")
        assert len(await through(fleet, fleet.small, [chat([image_part(9300)])])) == 1


@asynccontextmanager
async def router_to(fleet: Fleet, encoder: str) -> AsyncIterator[str]:
    """A router with this encoder alone."""
    async with own_router([await described(encoder), await described(fleet.language_model)]) as router:
        yield router


async def through(fleet: Fleet, encoder: str, requests: Sequence[Json], *, watched: bool = False) -> list[Answer]:
    """The answers to requests sent at once through one encoder; a watched one never has a queue of its own."""
    async with router_to(fleet, encoder) as router:
        answering = asyncio.create_task(ask_all(router, requests))
        queued_here, pinned, queued_there = 0.0, 0, 0.0
        while watched and not answering.done():
            queued_here = max(queued_here, (await metrics(router))[WAITING_HERE])
            queued_there = max(queued_there, (await metrics(encoder))[WAITING])
            pinned = max(pinned, (await pool(encoder))["pinned"])
            await asyncio.sleep(0.05)
        answers = await answering
        if watched:
            assert queued_here > 0
            assert 0 < pinned <= POOL_ITEMS
            assert queued_there <= POOL_ITEMS
        return list(answers)
