# SPDX-License-Identifier: Apache-2.0
"""Finding media parts, and putting metadata in their place."""

import copy

import pytest

from tests.unit.router.conftest import image, text
from vllm_epd.errors import BadRequestError
from vllm_epd.router.media import EncodedItem, find_media, replace_media, strip_uuids

CAT = image("cat")
URL = {"url": "http://host/x"}
ONE = EncodedItem("h1", "image", {"image_grid_thw": [1, 2, 3]})
TWO = EncodedItem("h2", "video", {"video_grid_thw": [4, 5, 6]})


def user(*parts):
    return {"role": "user", "content": list(parts)}


MEDIA = {
    "image_url": {"type": "image_url", "image_url": URL},
    "input_image": {"type": "input_image", "image_url": "http://host/x"},
    "audio_url": {"type": "audio_url", "audio_url": URL},
    "input_audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "video_url": {"type": "video_url", "video_url": URL},
    "no type": {"image_url": "http://host/x"},
    "no type, an object": {"video_url": URL},
    "a null uuid": {"type": "image_url", "image_url": URL, "uuid": None},
    "more fields": {"type": "image_url", "image_url": {**URL, "detail": "low"}, "caption": "x"},
}


@pytest.mark.parametrize("part", MEDIA.values(), ids=MEDIA.keys())
def test_media_is_found(part):
    (found,) = find_media([user(text("a"), part)])
    assert (found.message, found.position) == (0, 1)
    assert found.part == {name: value for name, value in part.items() if name != "uuid"}


def test_media_is_found_in_order_in_all_messages():
    messages = [
        {"role": "system", "content": "be kind"},
        user(CAT, "bare text", CAT),
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": [CAT]},
    ]
    assert [(each.message, each.position) for each in find_media(messages)] == [(1, 0), (1, 2), (3, 0)]


TEXT = [
    text("a"),
    {"type": "input_text", "text": "a"},
    {"type": "thinking", "thinking": "a"},
    {"type": "refusal", "refusal": "a"},
    {"type": "tool_reference", "name": "f"},
    {"type": "text", "text": "a", "image_url": URL},
    "a",
]


@pytest.mark.parametrize("part", TEXT, ids=str)
def test_text_is_no_media(part):
    assert find_media([user(part)]) == ()


def test_a_uuid_makes_the_key_decide_and_is_taken_off():
    (found,) = find_media([user({"type": "text", "image_url": "http://host/x", "uuid": "mine"})])
    assert found.part == {"type": "image_url", "image_url": URL}
    (found,) = find_media([user({"type": "image_url", "image_url": URL, "uuid": "mine"})])
    assert found.part == {"type": "image_url", "image_url": URL}


REFUSED = {
    "image_embeds": ({"type": "image_embeds", "image_embeds": "x"}, "image_embeds is not taken"),
    "embeds beside text": ({"type": "text", "text": "a", "audio_embeds": "x"}, "audio_embeds is not taken"),
    "prompt_embeds": ({"type": "prompt_embeds", "data": "x"}, "prompt_embeds is not taken"),
    "image_pil": ({"image_pil": "x"}, "image_pil is not taken"),
    "a file": ({"type": "file", "file": {"file_data": "x"}}, "unsupported chat content part type 'file'"),
    "a type that is no word": ({"type": 3}, "unsupported chat content part type 3"),
    "no type": ({"text": "a"}, "missing 'type' field"),
    "a uuid and no known key": ({"type": "text", "text": "a", "uuid": "u"}, "missing 'type' field"),
    "a uuid alone": ({"type": "image_url", "image_url": None, "uuid": "u"}, "with a uuid but no data"),
    "a uuid and an empty url": ({"image_url": {"url": ""}, "uuid": "u"}, "with a uuid but no data"),
    "no url": ({"type": "image_url"}, r"image_url\.url must be a non-empty string"),
    "a url that is no string": ({"type": "video_url", "video_url": {"url": 3}}, r"video_url\.url must be"),
    "no audio": ({"type": "input_audio", "input_audio": {"format": "wav"}}, r"input_audio\.data must be"),
    "no object": (3, "must be an object"),
}


@pytest.mark.parametrize(("part", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(part, message):
    with pytest.raises(BadRequestError, match=message) as caught:
        find_media([user(text("a"), part)])
    assert caught.value.param == "messages"
    assert "messages[0].content[1]" in str(caught.value)


def test_a_message_that_is_no_object():
    with pytest.raises(BadRequestError, match=r"messages\[1\] must be an object"):
        find_media([user(), "hi"])


def test_parts_are_replaced_in_their_places():
    messages = [user(text("a"), CAT, text("b")), {"role": "assistant", "content": "c"}, user(CAT)]
    before = copy.deepcopy(messages)
    replaced = replace_media(messages, find_media(messages), [ONE, TWO])
    assert replaced == [
        user(
            text("a"),
            {"type": "image_embeds", "image_embeds": {"image_grid_thw": [1, 2, 3]}, "uuid": "h1"},
            text("b"),
        ),
        {"role": "assistant", "content": "c"},
        user({"type": "video_embeds", "video_embeds": {"video_grid_thw": [4, 5, 6]}, "uuid": "h2"}),
    ]
    assert messages == before


def test_fields_that_a_chat_template_may_read_stay():
    messages = [user({**CAT, "uuid": "mine", "caption": "x", "video_url": URL})]
    (part,) = replace_media(messages, find_media(messages), [ONE])[0]["content"]
    assert part["caption"] == "x"
    assert part["uuid"] == "h1"
    assert {"image_url", "video_url"}.isdisjoint(part)


def test_every_item_must_be_there():
    messages = [user(CAT, CAT)]
    with pytest.raises(ValueError, match="shorter"):
        replace_media(messages, find_media(messages), [ONE])


def test_uuids_are_taken_off_media_that_stays():
    messages = [user({**CAT, "uuid": "mine"}, text("a"))]
    assert strip_uuids(messages, find_media(messages)) == [user(CAT, text("a"))]
    assert messages[0]["content"][0]["uuid"] == "mine"


INLINE = {
    "data": ({"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}, ("image_url", "data:x", "detail")),
    "capitals": ({"type": "image_url", "image_url": {"url": "DATA:x"}}, ("image_url", "DATA:x")),
    "bare": ({"type": "input_image", "image_url": "data:x"}, ("input_image", "data:x")),
    "no type": ({"audio_url": {"url": "data:x"}}, ("audio_url", "data:x")),
    "sound": ({"type": "input_audio", "input_audio": {"data": "AA", "format": "w"}}, ("input_audio", "AA", "format")),
    "bare sound": ({"type": "input_audio", "input_audio": "AA"}, ("input_audio", "AA")),
    "elsewhere": ({"type": "image_url", "image_url": {"url": "http://host/data:x"}}, None),
    "a file": ({"type": "video_url", "video_url": {"url": "file:///x"}}, None),
}


@pytest.mark.parametrize(("part", "found"), INLINE.values(), ids=INLINE.keys())
def test_the_data_that_a_part_brings_along(part, found):
    (media,) = find_media([{"role": "user", "content": [part]}])
    data = media.data
    assert found == (None if data is None else (data.kind, data.text, *data.options))
