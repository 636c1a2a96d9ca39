# SPDX-License-Identifier: Apache-2.0
"""A client's request, and the bodies that encode, prefill and decode get for it. Pure.

The client's body is shared by all bodies made from it and never changed.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from vllm_epd.errors import BadRequestError
from vllm_epd.router import fields, jsonio
from vllm_epd.router.embeddings import DESCRIBE, ask_offer, transfer_params
from vllm_epd.router.fields import Dest, Rule, When
from vllm_epd.router.inline import NOTHING, Inline, Pieces
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.media import (
    EncodedItem,
    MediaPart,
    Shard,
    find_media,
    replace_media,
    strip_uuids,
)

#: What makes a vLLM instance keep the KV cache of a prompt for another one.
KEEP_KV: JsonObject = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


#: The key of what routers and instances tell each other about KV caches, and the KV connector of our own.
EPD = "epd"

#: How many tokens vLLM generates for a completion whose client does not say.
COMPLETION_TOKENS = 16

#: What P is not asked for: it answers once.
_OF_STREAMS = ("stream_options", "stream_interval")


class Api(StrEnum):
    """The two generating APIs, by their paths.

    Attributes:
        rules: what becomes of each field.
        id_prefix: with what vLLM starts the ids of its answers.
    """

    rules: Mapping[str, Rule]
    id_prefix: str

    CHAT = "/v1/chat/completions", fields.CHAT, "chatcmpl-"
    COMPLETION = "/v1/completions", fields.COMPLETION, "cmpl-"

    def __new__(cls, path: str, rules: Mapping[str, Rule], id_prefix: str) -> Self:  # noqa: D102
        api = str.__new__(cls, path)
        api._value_, api.rules, api.id_prefix = path, rules, id_prefix
        return api


class Branch(Struct, frozen=True):
    """One prompt and one choice of a request: what one pair of P and D serves.

    Attributes:
        index: index of the choice in the client's answer.
        prompt: index of the prompt.
        choice: index among the choices for that prompt.
    """

    index: int = 0
    prompt: int = 0
    choice: int = 0


class ClientRequest(Struct, frozen=True):
    """A request as far as the router looks into it.

    Attributes:
        api: where it arrived.
        raw: the bytes of its body.
        body: its body.
        media: its media parts, in order of appearance.
        prompts: the prompts of a completion; a chat has one.
        n: choices per prompt.
        model: the model that the client names.
        inline: the data of media parts that is cut out of `raw` and `body`, and of what is made from them.
    """

    api: Api
    raw: bytes
    body: JsonObject
    media: tuple[MediaPart, ...]
    prompts: tuple[Any, ...]
    n: int
    model: str | None = None
    inline: Inline = NOTHING

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return bool(self.body.get("stream"))

    @property
    def without_data(self) -> bool:
        """Whether its media is metadata already, see `without_media`."""
        return not self.raw

    @property
    def nbytes(self) -> int:
        """The size of its body."""
        return len(self.raw) + sum(len(piece) for pieces in self.inline.data for piece in pieces)

    def written(self, body: JsonObject) -> Pieces:
        """A body made from this request as JSON, with all data in it."""
        return self.inline.filled(jsonio.encode(body))

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The pairs of P and D that serve it when the two are apart, in order of their choices."""
        indices = ((prompt, choice) for prompt in range(len(self.prompts)) for choice in range(self.n))
        return tuple(Branch(index, *pair) for index, pair in enumerate(indices))

    @property
    def max_tokens(self) -> int | None:
        """How many tokens the client asks for at most; None if it leaves that to the instance."""
        if self.api is Api.COMPLETION:
            asked = self.body.get("max_tokens")
            return COMPLETION_TOKENS if asked is None else asked
        asked = self.body.get("max_completion_tokens")
        return self.body.get("max_tokens") if asked is None else asked


def without_media(request: ClientRequest, items: Sequence[EncodedItem]) -> ClientRequest:
    """The same request with its encoded media replaced by metadata; only encoding needs the data.

    Media is most of a request, and a request lives as long as its answer takes.
    """
    messages = replace_media(request.body["messages"], request.media, items) if request.media else None
    body = request.body if messages is None else {**request.body, "messages": messages}
    media = tuple(each.emptied() for each in request.media)
    return replace(request, raw=b"", body=body, media=media, inline=NOTHING)


def parse_request(api: Api, raw: bytes, inline: Inline = NOTHING) -> ClientRequest:
    """Read a client's body, out of which long data may be cut, and refuse what no route can serve.

    Raises:
        BadRequestError: the client must change the request.
    """
    if not inline:
        return _parse(api, raw, NOTHING)
    with suppress(BadRequestError):
        request = _parse(api, raw, inline)
        if _all_in_media(request):
            return request
    return _parse(api, b"".join(inline.filled(raw)), NOTHING)


def _parse(api: Api, raw: bytes, inline: Inline) -> ClientRequest:
    body = jsonio.decode_request(raw)
    fields.refuse(api.rules, body, When.ALWAYS)
    _check_scalars(body)
    media: tuple[MediaPart, ...] = ()
    prompts: tuple[Any, ...] = (None,)
    if api is Api.CHAT:
        media = find_media(_messages(body))
    else:
        prompts = _prompts(body)
    n = body.get("n")
    return ClientRequest(api, raw, body, media, prompts, 1 if n is None else n, body.get("model") or None, inline)


def _all_in_media(request: ClientRequest) -> bool:
    """Whether all that was cut out is the data of media parts, each of which goes where its part goes."""
    held = [each for each in request.media if each.data is not None and request.inline.held(each.data.text) is not None]
    return len(held) == len(request.inline.data)


def encode_body(request: ClientRequest, media: MediaPart, offer: str, shard: Shard | None = None) -> JsonObject:
    """What an encode instance gets for one media part, or for one shard of it, to offer it under a name."""
    return {
        **fields.select(request.api.rules, request.body, Dest.ALL, Dest.MEDIA),
        "messages": [{"role": "user", "content": [media.part]}],
        "max_tokens": 1,
        "stream": False,
        "ec_transfer_params": ask_offer(offer, shard),
    }


def prefill_body(
    request: ClientRequest,
    branch: Branch,
    items: Sequence[EncodedItem] | None,
    *,
    offer: str | None = None,
    samples: bool = False,
    sent: Sequence[int] = (),
) -> JsonObject:
    """What a prefill instance gets whose KV cache another instance takes over.

    Args:
        request: the client's request.
        branch: which prompt.
        items: the encoded media; None if this instance is to encode it itself.
        offer: under which name it is to offer the KV cache over our own connector; None if over vLLM's.
        samples: its token is the first one of the answer, so that it has to know how to sample.
        sent: tokens of the answer that the client has, and that are prefilled with the prompt.
    """
    raw_media = items is None and bool(request.media)
    dests = [Dest.ALL, Dest.PROMPT]
    if raw_media:
        dests.append(Dest.MEDIA)
    if samples:
        dests.append(Dest.OUTPUT)
    body = fields.select(request.api.rules, request.body, *dests)
    for name in _OF_STREAMS:
        body.pop(name, None)
    _set_prompt(body, request, branch, items)
    keep = KEEP_KV if offer is None else {EPD: {"offer": offer}}
    if sent:
        keep = going_on(keep, sent)
    body |= {"max_tokens": 1, "stream": False, "kv_transfer_params": keep}
    if request.body.get("max_completion_tokens") is not None:
        body["max_completion_tokens"] = 1
    if raw_media:
        body["ec_transfer_params"] = DESCRIBE
    return body


def decode_body(
    request: ClientRequest,
    branch: Branch,
    items: Sequence[EncodedItem] | None,
    kv: JsonObject | None,
    *,
    sent: Sequence[int] = (),
    tells_tokens: bool = False,
) -> JsonObject:
    """What the instance gets that generates.

    Args:
        request: the client's request.
        branch: which prompt and choice; not looked at when `kv` is None.
        items: the encoded media.
        kv: where its KV cache is; None if this instance prefills too, for all prompts and choices.
        sent: tokens of the answer that the client has, and that the instance goes on from.
        tells_tokens: the answer has the ids of its tokens, for this router.
    """
    body = fields.select(request.api.rules, request.body, Dest.ALL, Dest.PROMPT, Dest.OUTPUT)
    if tells_tokens:
        body["return_token_ids"] = True
    if sent:
        body["kv_transfer_params"] = going_on(kv or {}, sent)
    elif kv is not None:
        body["kv_transfer_params"] = kv
    if kv is None:
        _set_messages(body, request, items)
        return body
    _set_prompt(body, request, branch, items)
    body["n"] = 1
    if isinstance(seed := body.get("seed"), int):
        body["seed"] = seed + branch.choice  # as vLLM seeds the children of one request
    return body


def going_on(kv: JsonObject, sent: Sequence[int]) -> JsonObject:
    """`kv` for a request that goes on from tokens that the client has."""
    return {**kv, EPD: {**kv.get(EPD, {}), "sent": list(sent)}}


def _set_prompt(body: JsonObject, request: ClientRequest, branch: Branch, items: Sequence[EncodedItem] | None) -> None:
    if request.api is Api.COMPLETION:
        body["prompt"] = request.prompts[branch.prompt]
    else:
        _set_messages(body, request, items)


def _set_messages(body: JsonObject, request: ClientRequest, items: Sequence[EncodedItem] | None) -> None:
    if not request.media:
        return
    if items is None:
        body["messages"] = strip_uuids(request.body["messages"], request.media)
        return
    if not request.without_data:
        body["messages"] = replace_media(request.body["messages"], request.media, items)
    if params := transfer_params(items):
        body["ec_transfer_params"] = params


def _messages(body: JsonObject) -> list[Any]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise BadRequestError("`messages` must be a list", param="messages")
    return messages


def _prompts(body: JsonObject) -> tuple[Any, ...]:
    prompt = body.get("prompt")
    if prompt is None or prompt == "":
        raise BadRequestError("`prompt` must be provided and non-empty", param="prompt")
    if not isinstance(prompt, (str, list)):
        raise BadRequestError("`prompt` must be a string, a list of strings or token ids", param="prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return tuple(prompt)
    return (prompt,)


def _check_scalars(body: JsonObject) -> None:
    model, n, stream = body.get("model"), body.get("n"), body.get("stream")
    if model is not None and not isinstance(model, str):
        raise BadRequestError("`model` must be a string", param="model")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequestError("`stream` must be true or false", param="stream")
    if n is not None and (type(n) is not int or n < 1):
        raise BadRequestError(f"`n` must be an integer of at least 1, got {n!r}", param="n")
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if type(value) is int and value < 1 and not (value == 0 and body.get("echo")):
            raise BadRequestError(f"`{name}` must be at least 1, got {value}", param=name)
