# SPDX-License-Identifier: Apache-2.0
"""One request through every topology: who is asked, for what, and what the client gets."""

import asyncio
import io
import json

import pytest

from tests.fakes.instance import grid, item_hash
from tests.unit.router.conftest import busy, image, soon, text

CAT, DOG = image("cat"), image("doggy")
CAT_URL, DOG_URL = CAT["image_url"]["url"], DOG["image_url"]["url"]
MIXED = [text("see"), CAT, text("and"), DOG]
TOPOLOGIES = {
    "EPD": ("EPD",),
    "1E1P1D": ("E", "P", "D"),
    "2E1P1D": ("E", "E", "P", "D"),
    "1E1PD": ("E", "PD"),
    "1EP1D": ("EP", "D"),
    "2EP1D": ("EP", "EP", "D"),
    "1ED1P": ("ED", "P"),
    "1E2P2D": ("E", "P", "P", "D", "D"),
}


@pytest.mark.parametrize("letters", TOPOLOGIES.values(), ids=TOPOLOGIES.keys())
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_every_topology_answers_as_one_server_does(cluster, letters, stream):
    await cluster.up(*letters)
    answer = await cluster.chat(MIXED, stream=stream)
    assert answer.status == 200
    told = answer.streamed[0] if stream else answer.text
    assert told == f"see <{item_hash(CAT_URL)}> and <{item_hash(DOG_URL)}>"


@pytest.mark.parametrize("letters", TOPOLOGIES.values(), ids=TOPOLOGIES.keys())
async def test_every_topology_serves_text(cluster, letters):
    await cluster.up(*letters)
    assert (await cluster.chat("plain words")).text == "plain words"


async def test_text_only_skips_encode(cluster):
    encode, prefill, decode = await cluster.up("E", "P", "D")
    await cluster.chat("plain words")
    assert encode.seen == []
    (asked,) = prefill.bodies("prefill")
    assert "ec_transfer_params" not in asked
    (asked,) = decode.bodies("generate")
    assert "ec_transfer_params" not in asked


async def test_one_image_through_1e1p1d(cluster):
    encode, prefill, decode = await cluster.up("E", "P", "D")
    await cluster.chat([text("see"), CAT], max_tokens=7, temperature=0.5)
    key = item_hash(CAT_URL)
    handle = {
        "version": 2,
        "key": key,
        "lease": f"{encode.seen[0].request_id}:0",
        "epoch": "1",
        "rank": 0,
        "nbytes": 100,
        "at": encode.instance_id,
    }
    handles = {key: {"handle": handle}}
    parts = [text("see"), {"type": "image_embeds", "image_embeds": grid(CAT_URL), "uuid": key}]
    (encoded,) = encode.bodies("encode")
    offer = encoded["ec_transfer_params"]["epd"]["offer"]
    assert offer.startswith(encode.seen[0].request_id.removesuffix("-e0"))
    assert encode.bodies("encode") == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": [CAT]}],
            "max_tokens": 1,
            "stream": False,
            "ec_transfer_params": {"epd": {"offer": offer}},
        }
    ]
    assert prefill.bodies("prefill") == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 1,
            "stream": False,
            "ec_transfer_params": handles,
            "kv_transfer_params": {
                "do_remote_decode": True,
                "do_remote_prefill": False,
                "remote_engine_id": None,
                "remote_block_ids": None,
                "remote_host": None,
                "remote_port": None,
            },
        }
    ]
    assert decode.bodies("generate") == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 7,
            "temperature": 0.5,
            "n": 1,
            "ec_transfer_params": handles,
            "kv_transfer_params": {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_block_ids": [[1, 2]],
                "remote_engine_id": prefill.instance_id,
                "remote_request_id": prefill.seen[0].request_id,
            },
        }
    ]


async def test_distinct_images_stay_distinct_and_in_order(cluster):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    await cluster.chat([DOG, text("then"), CAT])
    assert sorted(len(body["messages"][0]["content"]) for body in encode.bodies("encode")) == [1, 1]
    (asked,) = prefill.bodies("prefill")
    first, _, last = asked["messages"][0]["content"]
    assert (first["uuid"], first["image_embeds"]) == (item_hash(DOG_URL), grid(DOG_URL))
    assert (last["uuid"], last["image_embeds"]) == (item_hash(CAT_URL), grid(CAT_URL))
    assert set(asked["ec_transfer_params"]) == {item_hash(DOG_URL), item_hash(CAT_URL)}


async def test_an_image_that_occurs_twice_is_encoded_once(cluster):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    await cluster.chat([CAT, text("and again"), CAT])
    assert len(encode.seen) == 1
    first, _, last = prefill.bodies("prefill")[0]["messages"][0]["content"]
    assert first == last
    assert first["uuid"] == item_hash(CAT_URL)


async def test_two_encode_instances_work_at_once(cluster):
    one, other, _, _ = await cluster.up("E", "E", "P", "D")
    release = asyncio.Event()
    one.does.hold = other.does.hold = release
    asked = asyncio.create_task(cluster.chat([CAT, DOG]))
    await soon(lambda: one.seen and other.seen)
    assert [len(one.seen), len(other.seen)] == [1, 1]
    release.set()
    assert (await asked).status == 200


async def test_several_items_go_to_the_encode_instance_with_the_least_work(cluster):
    one, other, _, _ = await cluster.up("E", "E", "P", "D")
    release = asyncio.Event()
    one.does.hold = other.does.hold = release
    with busy(cluster.instance(one), 1e5):
        asked = asyncio.create_task(cluster.chat([CAT, DOG, image("bird")]))
        await soon(lambda: len(other.seen) == 3)
    assert one.seen == []
    release.set()
    assert (await asked).status == 200


async def test_instances_that_only_encode_are_preferred(cluster):
    encode, mixed, prefill, _ = await cluster.up("E", "EP", "P", "D")
    with busy(cluster.instance(mixed)):  # so that the request is prefilled by the other one
        await cluster.chat([CAT, DOG])
    assert len(encode.bodies("encode")) == 2
    assert mixed.seen == []
    assert len(prefill.seen) == 1


async def test_prefill_and_decode_in_one_need_no_kv_transfer(cluster):
    encode, both = await cluster.up("E", "PD")
    await cluster.chat(MIXED, max_tokens=5, n=2)
    (asked,) = both.bodies("generate")
    assert len(both.seen) == 1
    assert len(encode.seen) == 2
    assert "kv_transfer_params" not in asked
    assert asked["max_tokens"] == 5
    assert asked["n"] == 2
    assert len(asked["ec_transfer_params"]) == 2


async def test_encode_and_prefill_in_one_gets_the_media_and_describes_it_to_decode(cluster):
    both, decode = await cluster.up("EP", "D")
    await cluster.chat([text("see"), {**CAT, "uuid": "mine"}], mm_processor_kwargs={"max_pixels": 9})
    (asked,) = both.bodies("prefill")
    assert asked["messages"][0]["content"] == [text("see"), CAT]
    assert asked["ec_transfer_params"] == {"epd": {"describe": True}}
    assert asked["mm_processor_kwargs"] == {"max_pixels": 9}
    (asked,) = decode.bodies("generate")
    assert asked["messages"][0]["content"][1] == {
        "type": "image_embeds",
        "image_embeds": grid(CAT_URL),
        "uuid": item_hash(CAT_URL),
    }
    assert "ec_transfer_params" not in asked
    assert "mm_processor_kwargs" not in asked


async def test_a_whole_instance_gets_the_clients_own_bytes(cluster):
    (whole,) = await cluster.up("EPD")
    await cluster.chat([CAT], n=2, prompt_logprobs=1, echo=True)
    (seen,) = whole.seen
    assert seen.body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": [CAT]}],
        "n": 2,
        "prompt_logprobs": 1,
        "echo": True,
    }


async def test_the_free_instance_is_chosen_whatever_its_roles(cluster):
    whole, encode, prefill, decode = await cluster.up("EPD", "E", "P", "D")
    with busy(cluster.instance(whole)):
        await cluster.chat([CAT])
    assert whole.seen == []
    with busy(cluster.instance(prefill)):
        await cluster.chat([CAT])
    assert len(whole.seen) == 1
    assert [len(each.seen) for each in (encode, prefill, decode)] == [1, 1, 1]


async def test_media_travels_once(cluster, recwarn):
    encode, prefill, decode = await cluster.up("E", "P", "D")
    big = 4 * 2**20
    content = [text("see"), image("a" * big), image("b" * big)]
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": content}]}).encode()
    answer = await cluster.call(
        "POST",
        "/v1/chat/completions",
        data=io.BytesIO(body),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status == 200
    assert not [each for each in recwarn if "large body" in str(each.message)]
    assert [seen.size > big for seen in encode.seen] == [True, True]
    assert sum(seen.size for seen in encode.seen) < 2 * big + 2**16
    assert [seen.size < 2**16 for seen in (*prefill.seen, *decode.seen)] == [True, True]


async def test_video_and_audio_parts(cluster):
    _, prefill, _ = await cluster.up("E", "P", "D")
    video = {"type": "video_url", "video_url": {"url": "http://host/v.mp4"}}
    sound = {"type": "input_audio", "input_audio": {"data": "c291bmQ=", "format": "wav"}}
    encode_says = {"input_audio": "audio"}

    def rename(answer):
        for entry in (answer["ec_transfer_params"] or {}).values():
            entry["modality"] = encode_says.get(entry["modality"], entry["modality"])

    cluster._fakes[0].does.change = rename
    await cluster.chat([video, sound])
    first, last = prefill.bodies("prefill")[0]["messages"][0]["content"]
    assert (first["type"], first["video_embeds"]) == ("video_embeds", grid("http://host/v.mp4"))
    assert (last["type"], last["uuid"]) == ("audio_embeds", item_hash("c291bmQ="))


async def test_ids_tell_the_stages_apart_and_decode_keeps_the_clients(cluster):
    encode, prefill, decode = await cluster.up("E", "P", "D")
    answer = await cluster.chat(MIXED, headers={"X-Request-Id": "abc"})
    assert answer.headers["X-Request-Id"] == "abc"
    assert answer.json["id"] == "chatcmpl-abc"
    assert sorted(seen.request_id for seen in encode.seen) == ["abc-e0", "abc-e1"]
    assert [seen.request_id for seen in (*prefill.seen, *decode.seen)] == ["abc-p", "abc"]


async def test_a_request_without_an_id_gets_one(cluster):
    await cluster.up("EPD")
    one, other = await cluster.chat("x"), await cluster.chat("x")
    assert one.json["id"] == "chatcmpl-" + one.headers["X-Request-Id"]
    assert one.headers["X-Request-Id"] != other.headers["X-Request-Id"]


async def test_every_instance_is_told_who_asks(cluster):
    fakes = await cluster.up("E", "P", "D")
    await cluster.chat([CAT], headers={"Authorization": "Bearer key", "traceparent": "00-1-2-01", "X-Other": "1"})
    for fake in fakes:
        assert fake.seen[0].headers["Authorization"] == "Bearer key"
        assert fake.seen[0].headers["traceparent"] == "00-1-2-01"
        assert "X-Other" not in fake.seen[0].headers


async def test_media_options_go_to_encode_alone(cluster):
    encode, prefill, decode = await cluster.up("E", "P", "D")
    options = {"mm_processor_kwargs": {"max_pixels": 9}, "media_io_kwargs": {"image": {"mode": "L"}}}
    await cluster.chat([CAT], cache_salt="s", **options)
    (asked,) = encode.bodies("encode")
    assert {name: asked[name] for name in options} == options
    assert asked["cache_salt"] == "s"
    for body in (*prefill.bodies("prefill"), *decode.bodies("generate")):
        assert body["cache_salt"] == "s"
        assert options.keys().isdisjoint(body)


async def test_a_request_without_a_model_goes_to_the_first_one(cluster):
    await cluster.add("EPD", models=("other",))
    await cluster.up("EPD")
    answer = await cluster.call("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    assert answer.status == 200
    assert len(cluster._fakes[0].seen) == 1


async def test_work_is_counted_while_it_lasts(cluster):
    fakes = await cluster.up("E", "P", "D")
    release = asyncio.Event()
    counts = []
    for fake in fakes:
        fake.does.hold = release
        release.clear()
        fake.arrived.clear()
        asked = asyncio.create_task(cluster.chat([CAT]))
        await fake.arrived.wait()
        counts.append([cluster.instance(each).outstanding for each in fakes])
        release.set()
        await asked
        fake.does.hold = None
    # A request under way to its prefill instance counts there from the start.
    assert counts == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert [cluster.instance(each).outstanding for each in fakes] == [0, 0, 0]


async def test_one_instance_that_does_it_all_counts_a_request_once(cluster):
    (whole,) = await cluster.up("EPD")
    whole.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat([CAT]))
    await whole.arrived.wait()
    assert cluster.instance(whole).outstanding == 1
    whole.does.hold.set()
    await asked
    assert cluster.instance(whole).outstanding == 0
