# SPDX-License-Identifier: Apache-2.0
"""Items that two encoders share: the tokens are those of a single server, whatever the number of prefill instances."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.engine import calls, stages
from tests.engine.gauges import PROMPTED, metrics
from tests.engine.mortals import Mortal, living
from tests.engine.own_router import described, own_router
from tests.engine.system import System
from tests.engine.test_exactness import TOLERANCE, StartSystem, differences
from tests.engine.traffic import CHAT, TIMEOUT_S, Json, ask_all, ask_in_turn, chat, image_part, video_part

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ENCODED = "vllm_epd:embedding_pool_encoded_total"


def image(seed: int) -> Json:
    """Thirteen of InternVL's tiles, or nine of MiniCPM-V's slices."""
    return image_part(seed, (1000, 640))


def video(seed: int) -> Json:
    """Four temporal steps of Qwen2.5-VL."""
    return video_part(seed, 8, (224, 168))


ITEMS: Mapping[str, Callable[[int], Json]] = {"internvl2": image, "minicpm-v-2.6": image, "qwen2.5-vl": video}
"""What of each family can be cut."""


def requests(family: str, seed: int) -> list[Json]:
    """One item, another one, two of them, and the first one again beside a third; six distinct items in all."""
    item = ITEMS[family]
    contents = [[seed], [seed + 100], [seed + 200, seed + 300], [seed + 400, seed + 500, seed + 400]]
    return [chat([item(each) for each in content], f"Describe {index}.") for index, content in enumerate(contents)]


DISTINCT = 6


async def infos(router: str) -> dict[str, list[Json]]:
    """What the instances behind a router say of themselves, by role."""
    listed = calls.get(f"{router}/epd/instances").json()["instances"]
    found: dict[str, list[Json]] = {}
    for each in listed:
        found.setdefault(each["roles"], []).append(await described(each["url"]))
    return found


async def counts(instances: Sequence[Json], name: str) -> list[int]:
    """One counter of each of the instances."""
    return [int((await metrics(each["url"]))[name]) for each in instances]


@asynccontextmanager
async def growth(instances: Sequence[Json], name: str) -> AsyncIterator[list[int]]:
    """By how much a counter of each instance has grown in the `async with` block; filled in at its end."""
    before, grown = await counts(instances, name), list[int]()
    yield grown
    grown += [after - earlier for after, earlier in zip(await counts(instances, name), before, strict=True)]


async def check_tokens(system: System, router: str, asked: list[Json]) -> None:
    wanted = await ask_in_turn(system.single, asked)
    assert len({answer.tokens for answer in wanted}) == len(wanted), "the model hardly looks at its input"
    answers = await ask_all(router, asked)
    failures = [differences(got, want, TOLERANCE[system.dtype]) for got, want in zip(answers, wanted, strict=True)]
    assert not any(failures), failures


@pytest.mark.parametrize("family", ITEMS)
async def test_the_tokens_are_the_same_whether_items_are_cut_or_not(start_system: StartSystem, family: str) -> None:
    system = start_system(family, "float32")
    instances = await infos(system.router)
    encoders, everyone = instances["encode"], [each for group in instances.values() for each in group]
    for degree, seed in ((2, 7000), (1, 8000)):
        async with own_router(everyone, irp_degree=degree) as router, growth(encoders, ENCODED) as encoded:
            await check_tokens(system, router, requests(family, seed))
        assert sum(encoded) == degree * DISTINCT, "two halves of each item, or each of them once"
        assert all(encoded), "both have encoded"


async def test_what_cannot_be_cut_is_encoded_by_one(system: System) -> None:
    instances = await infos(system.router)
    everyone = [each for group in instances.values() for each in group]
    async with own_router(everyone, irp_degree=2) as router, growth(instances["encode"], ENCODED) as encoded:
        await check_tokens(system, router, [chat([image(9000)]), chat([image(9001)])])
    assert sum(encoded) == 2


@pytest.mark.parametrize("family", ["internvl2"])
async def test_two_prefill_instances_both_merge_what_they_are_given(
    start_system: StartSystem, tmp_path: Path, family: str
) -> None:
    system = start_system(family, "float32")
    with living([Mortal("prefill", system.router, tmp_path, family=family)]):
        instances = await infos(system.router)
        assert len(instances["prefill"]) == 2
        everyone = [each for group in instances.values() for each in group]
        async with (
            own_router(everyone, irp_degree=2) as router,
            growth(instances["encode"], ENCODED) as encoded,
            growth(instances["prefill"], PROMPTED) as prompted,
        ):
            await check_tokens(system, router, requests(family, 10000))
    assert (sum(encoded), all(encoded)) == (2 * DISTINCT, True), "two halves of each item, by both encoders"
    assert all(prompted), "both have prefilled"


async def ask_encoder(url: str, part: Json, shard: list[int]) -> httpx.Response:
    """Have an encode instance encode one shard."""
    body = {**chat([part], max_tokens=1), "ec_transfer_params": {"epd": {"offer": True, "shard": shard}}}
    async with calls.client(timeout=TIMEOUT_S) as client:
        return await client.post(url + CHAT, json=body)


@pytest.mark.parametrize(
    ("part", "shard", "told"),
    [
        (image(9100), [0, 2], None),
        (image(9100), [1, 2], [1, 1]),
        (video(9200), [5, 6], [5, 4]),
        (video(9200), [3, 6], [3, 4]),
        (video(9200), [1, 2], [1, 2]),
    ],
    ids=["first of what is whole", "second of what is whole", "past the last", "the last", "second half"],
)
async def test_an_encoder_says_which_part_it_has(
    system: System, part: Json, shard: list[int], told: list[int] | None
) -> None:
    encoder = system.instances("encode")[0]
    answer = (await ask_encoder(encoder, part, shard)).json()
    ((key, entry),) = answer["ec_transfer_params"].items()
    whole = await stages.encode(system, part, encoder)
    assert (entry.get("item", key), entry["metadata"]) == (whole.key, whole.metadata)
    assert entry.get("shard") == told
    assert ("handle" in entry) == (told is None or told[0] < told[1])
    if told is not None and told[0] < told[1]:
        assert entry["handle"]["key"] == key == f"{whole.key}:{told[0]}/{told[1]}"
        assert entry["handle"]["nbytes"] * told[1] == whole.handle["nbytes"]


async def test_a_shard_that_there_cannot_be_is_refused(system: System) -> None:
    response = await ask_encoder(system.instances("encode")[0], image(9300), [2, 2])
    assert (response.status_code, "shard" in response.text) == (400, True)
