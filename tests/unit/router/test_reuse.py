# SPDX-License-Identifier: Apache-2.0
"""By what an embedding is known, and what is remembered of it."""

import dataclasses
import json

import pytest

from tests.fakes.instance import FINGERPRINT
from tests.unit.router.conftest import image
from tests.unit.router.test_pools import ENCODER
from vllm_epd.router.embeddings import Lease
from vllm_epd.router.inline import NOTHING, SHORTEST, Cutter
from vllm_epd.router.instances import Instance
from vllm_epd.router.media import EncodedItem, InlineData
from vllm_epd.router.requests import Api, parse_request
from vllm_epd.router.reuse import Directory, Known, circumstances, digesting

CAT = image("cat")


def name(part=CAT, group=FINGERPRINT, **fields):
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}], **fields}
    request = parse_request(Api.CHAT, json.dumps(body).encode())
    return digest(request.media[0].data, circumstances(request, group))


def digest(data, around, inline=NOTHING):
    found = digesting(data, around)
    for piece in inline.filled(data.text.encode()):
        found.update(piece)
    return found.hexdigest()


SAME = {
    "another question": name(max_tokens=5, temperature=0.5, tools=[]),
    "a name given by the client": name({**CAT, "uuid": "mine"}),
    "what only the prompt shows": name({**CAT, "caption": "a cat"}),
}
OTHER = {
    "data": name(image("dog")),
    "model": name(model="adapter"),
    "no model": name(model=None),
    "salt": name(cache_salt="s"),
    "processor": name(mm_processor_kwargs={"max_pixels": 9}),
    "decoder": name(media_io_kwargs={"image": {"mode": "L"}}),
    "detail": name({"type": "image_url", "image_url": {**CAT["image_url"], "detail": "low"}}),
    "type": name({"type": "video_url", "video_url": CAT["image_url"]}),
    "instances": name(group=dataclasses.replace(FINGERPRINT, processor="p1")),
}


@pytest.mark.parametrize("given", SAME.values(), ids=SAME.keys())
def test_what_does_not_shape_the_embedding_does_not_count(given):
    assert given == name()


def test_what_shapes_the_embedding_counts():
    assert len({name(), *OTHER.values()}) == len(OTHER) + 1


def test_the_order_of_options_does_not_count():
    assert name(mm_processor_kwargs={"b": 1, "a": 2}) == name(mm_processor_kwargs={"a": 2, "b": 1})


def test_sound_in_two_formats_is_not_the_same():
    parts = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": form}} for form in ("wav", "mp3")]
    assert name(parts[0]) != name(parts[1])


def test_pieces_do_not_run_into_each_other():
    assert digest(InlineData("ab", "c", {}), b"x") != digest(InlineData("b", "c", {}), b"xa")


def test_data_has_one_name_whether_or_not_it_is_cut_out_of_its_body():
    part = image("a" * SHORTEST)
    cutter = Cutter()
    cutter.feed(json.dumps({"model": "tiny", "messages": [{"role": "user", "content": [part]}]}).encode())
    request = parse_request(Api.CHAT, *cutter.close())
    assert request.inline
    assert digest(request.media[0].data, circumstances(request, FINGERPRINT), request.inline) == name(part)


def known(key="k", holder=None):
    return Known(EncodedItem("h", "image", {}), Lease("l", key), holder or Instance(ENCODER, 0.0))


def always(instance):
    return True


def test_the_directory_keeps_those_asked_for_last():
    directory, entries = Directory(2), {each: known(each) for each in "abc"}
    directory.put("a", entries["a"])
    directory.put("b", entries["b"])
    assert directory.find("a", always) is entries["a"]
    directory.put("c", entries["c"])
    assert [directory.find(each, always) for each in "abc"] == [entries["a"], None, entries["c"]]


def test_an_embedding_whose_holder_is_gone_is_forgotten():
    directory, entry = Directory(2), known()
    directory.put("a", entry)
    assert directory.find("a", lambda instance: instance is not entry.holder) is None
    assert directory.find("a", always) is None


def test_only_what_was_looked_up_is_forgotten():
    directory, old, new = Directory(2), known(), known()
    directory.put("a", old)
    directory.put("a", new)
    directory.forget("a", old)
    assert directory.find("a", always) is new
    directory.forget("a", new)
    directory.forget("a", new)
    assert directory.find("a", always) is None
