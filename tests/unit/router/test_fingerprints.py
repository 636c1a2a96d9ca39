# SPDX-License-Identifier: Apache-2.0
"""One request never meets two fingerprints."""

import dataclasses

from tests.fakes.instance import FINGERPRINT
from tests.unit.router.conftest import busy, image

CAT = image("cat")
NEWER = dataclasses.replace(FINGERPRINT, weights="w1", vllm="0.33.0")


async def test_two_whole_groups_are_never_mixed(cluster):
    old = await cluster.up("E", "P", "D")
    new = [await cluster.add(letters, fingerprint=NEWER) for letters in "EPD"]
    for number in range(8):
        answer = await cluster.chat([image(f"cat{number}")], headers={"X-Request-Id": str(number)})
        assert answer.status == 200
    for group in (old, new):
        served = [{seen.request_id.split("-")[0] for seen in each.seen} for each in group]
        assert served[0] == served[1] == served[2]
    assert len(old[0].seen) == len(new[0].seen) == 4


async def test_a_group_that_is_not_whole_is_not_filled_up_from_another(cluster):
    await cluster.up("E", "P", "D")
    other = await cluster.add("P", fingerprint=NEWER)
    for _ in range(4):
        assert (await cluster.chat([CAT])).status == 200
    assert other.seen == []


async def test_stages_that_exist_only_under_two_fingerprints(cluster):
    prefill, _ = await cluster.up("P", "D")
    encode = await cluster.add("E", fingerprint=NEWER)
    answer = await cluster.chat([CAT])
    assert answer.status == 503
    message = answer.error["message"]
    assert "no encode instance of the fingerprint of" in message
    assert encode.instance_id in message
    assert "weights: w0 != w1" in message
    assert "vllm: 0.32.0 != 0.33.0" in message
    assert "processor" not in message
    assert encode.seen == prefill.seen == []
    assert (await cluster.chat("text")).status == 200


async def test_a_request_keeps_its_fingerprint_when_it_starts_over(cluster):
    gone = (await cluster.up("E", "P", "D"))[1]
    second = await cluster.add("P")
    other = [await cluster.add(letters, fingerprint=NEWER) for letters in "EPD"]
    with busy(cluster.instance(second)), busy(cluster.instance(other[1])):
        await gone.stop()
        assert (await cluster.chat([CAT])).status == 200
    assert len(second.seen) == 1
    assert all(fake.seen == [] for fake in other)


async def test_only_instances_that_serve_the_model_take_part(cluster):
    await cluster.up("E", "P")
    answer = await cluster.chat([CAT])
    assert "no decode instance" in answer.error["message"]
    await cluster.add("D", models=("another",))
    answer = await cluster.chat([CAT])
    assert (answer.status, "no decode instance" in answer.error["message"]) == (503, True)
    adapted = [await cluster.add(letters, models=("tiny", "adapter")) for letters in "EPD"]
    assert (await cluster.chat([CAT], model="adapter")).status == 200
    assert [len(fake.seen) for fake in adapted] == [1, 1, 1]
    assert adapted[0].seen[0].body["model"] == "adapter"
