# SPDX-License-Identifier: Apache-2.0
"""Media parts of chat messages: find them, take them out, put metadata in their place. Pure.

What counts as a media part, and of which type, follows vLLM's own reading of a content part
(`renderers/chat_utils.py`): the `type` decides, unless it is missing or the part has a `uuid`; then the
first known key does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from vllm_epd.errors import BadRequestError

JsonObject = dict[str, Any]

#: Type of a media part -> the key that holds its data.
MEDIA_KEYS: Mapping[str, str] = {
    "image_url": "image_url",
    "input_image": "image_url",
    "audio_url": "audio_url",
    "input_audio": "input_audio",
    "video_url": "video_url",
}
TEXT_TYPES = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "tool_reference"})
#: Embeddings from a client would bypass encoding and its checks; a Python image cannot cross HTTP.
REFUSED_KEYS = ("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil")
#: The order in which vLLM looks for a key when the type does not decide.
_KEYS_IN_ORDER = ("image_url", "audio_url", "input_audio", "video_url", "tool_reference")
#: What a replaced part does not take over from the client's part.
_NOT_COPIED = frozenset({*MEDIA_KEYS, "type", "uuid"})


class InlineData(Struct, frozen=True):
    """The data of a media part that brings it along.

    Attributes:
        kind: type of the part.
        text: the data, as a `data:` URL or in base64.
        options: what is said of it: `format`, `detail` and the like.
    """

    kind: str
    text: str
    options: JsonObject


class MediaPart(Struct, frozen=True):
    """One media part of a request.

    Attributes:
        message: index of its message.
        position: index of the part in that message's content.
        part: the part without the client's `uuid`, which could alias another client's.
        data: what it brings along; None where that lies elsewhere, and may be other data tomorrow.
    """

    message: int
    position: int
    part: JsonObject
    data: InlineData | None = None

    def emptied(self) -> "MediaPart":
        """The part without its data."""
        return MediaPart(self.message, self.position, _extra_fields(self.part))


class Shard(Struct, frozen=True):
    """Which part of how many of an item; one at or past `count` has nothing in it."""

    index: int
    count: int


class EncodedItem(Struct, frozen=True):
    """One encoded media item, or a shard of one.

    Attributes:
        mm_hash: its content key, as the encoding instance computed it.
        modality: `image`, `video` or `audio`.
        metadata: what sizes its placeholders.
        handle: where its embedding can be pulled from; None if the encoding instance offers it to nobody.
        lora: the adapter that the encoding instance applied, None without one.
        shard: which part of the item the handle is for; None for all of it.
        parts: the handles of all its shards, in order, if it has been encoded as several.
    """

    mm_hash: str
    modality: str
    metadata: JsonObject
    handle: Any = None
    lora: str | None = None
    shard: Shard | None = None
    parts: tuple[Any, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the item has fewer parts than this one's number."""
        return self.shard is not None and self.shard.index >= self.shard.count

    @property
    def is_offered(self) -> bool:
        """Whether its embedding can be pulled from somewhere."""
        return self.handle is not None or bool(self.parts)


def find_media(messages: Sequence[Any]) -> tuple[MediaPart, ...]:
    """The media parts in order of appearance.

    Raises:
        BadRequestError: a message or part that is no object, of an unknown or refused type, or without data.
    """
    found: list[MediaPart] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRequestError(f"messages[{index}] must be an object", param="messages")
        content = message.get("content")
        for position, part in enumerate(content if isinstance(content, list) else ()):
            where = f"messages[{index}].content[{position}]"
            if (kind := _media_kind(part, where)) is not None:
                clean = _without_uuid(part, kind)
                found.append(MediaPart(index, position, clean, _inline_data(clean)))
    return tuple(found)


def replace_media(messages: Sequence[Any], media: Sequence[MediaPart], items: Sequence[EncodedItem]) -> list[Any]:
    """The messages with each media part replaced by its metadata; the given ones are left as they are."""
    parts = [_embeds_part(each.part, item) for each, item in zip(media, items, strict=True)]
    return _with_parts(messages, media, parts)


def strip_uuids(messages: Sequence[Any], media: Sequence[MediaPart]) -> list[Any]:
    """The messages with the media as the client sent it, but without the client's names for it."""
    return _with_parts(messages, media, [each.part for each in media])


def _inline_data(part: JsonObject) -> InlineData | None:
    kind = part.get("type") or next(key for key in _KEYS_IN_ORDER if key in part)
    data = part[MEDIA_KEYS[kind]]
    field = "data" if kind == "input_audio" else "url"
    options = data if isinstance(data, dict) else {field: data}
    text = options[field]
    if field == "url" and text[:5].lower() != "data:":
        return None
    return InlineData(kind, text, {name: value for name, value in options.items() if name != field})


def _with_parts(messages: Sequence[Any], media: Sequence[MediaPart], parts: Sequence[JsonObject]) -> list[Any]:
    changed = list(messages)
    for each, part in zip(media, parts, strict=True):
        message = changed[each.message]
        if message is messages[each.message]:
            message = changed[each.message] = {**message, "content": list(message["content"])}
        message["content"][each.position] = part
    return changed


def _embeds_part(part: JsonObject, item: EncodedItem) -> JsonObject:
    kind = f"{item.modality}_embeds"
    return {**_extra_fields(part), "type": kind, kind: item.metadata, "uuid": item.mm_hash}


def _extra_fields(part: JsonObject) -> JsonObject:
    """Fields that vLLM does not know: they reach the chat template, so they belong to the prompt."""
    return {key: value for key, value in part.items() if key not in _NOT_COPIED}


def _media_kind(part: Any, where: str) -> str | None:
    if isinstance(part, str):
        return None
    if not isinstance(part, dict):
        raise BadRequestError(f"{where} must be an object", param="messages")
    kind = _kind(part, where)
    if kind not in MEDIA_KEYS:
        return None
    _check_data(part, MEDIA_KEYS[kind], where)
    return kind


def _kind(part: JsonObject, where: str) -> str:
    kind = part.get("type")
    for key in REFUSED_KEYS:
        if kind == key or key in part:
            raise BadRequestError(f"{where}: {key} is not taken from clients", param="messages")
    if kind is None or part.get("uuid") is not None:
        kind = next((key for key in _KEYS_IN_ORDER if key in part), None)
        if kind is None:
            raise BadRequestError(f"{where}: missing 'type' field in multimodal part", param="messages")
        return kind
    if not isinstance(kind, str) or (kind not in MEDIA_KEYS and kind not in TEXT_TYPES):
        supported = ", ".join(sorted({*MEDIA_KEYS, *TEXT_TYPES}))
        raise BadRequestError(
            f"{where}: unsupported chat content part type {kind!r}; supported: {supported}", param="messages"
        )
    return kind


def _check_data(part: JsonObject, key: str, where: str) -> None:
    data = part.get(key)
    if isinstance(data, dict):
        data = data.get("data" if key == "input_audio" else "url")
    if isinstance(data, str) and data:
        return
    if part.get("uuid") is not None:
        raise BadRequestError(
            f"{where}: a part with a uuid but no data cannot be served, because no encode instance is bound"
            " to hold it; send the data",
            param="messages",
        )
    field = f"{key}.data" if key == "input_audio" else f"{key}.url"
    raise BadRequestError(f"{where}: {field} must be a non-empty string", param="messages")


def _without_uuid(part: JsonObject, kind: str) -> JsonObject:
    if part.get("uuid") is None:
        return {key: value for key, value in part.items() if key != "uuid"}
    # With a uuid vLLM goes by the key and takes a bare URL too; without one it goes by the type alone.
    key = MEDIA_KEYS[kind]
    data = part[key] if isinstance(part[key], dict) else {"url": part[key]}
    return {**{name: value for name, value in part.items() if name != "uuid"}, "type": kind, key: data}
