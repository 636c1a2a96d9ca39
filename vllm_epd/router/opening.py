# SPDX-License-Identifier: Apache-2.0
"""The first token of an answer as P has sampled it, in the forms in which a single vLLM server sends it. Pure."""

from typing import Any

from msgspec import Struct

from vllm_epd.errors import UpstreamError
from vllm_epd.router import jsonio, sse
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.requests import Api, ClientRequest

#: How a decoder shows bytes that are no whole character yet.
_REPLACEMENT = "\ufffd"


class Opening(Struct, frozen=True):
    """P's answer of one token, and how the client wants to see it.

    Attributes:
        api: where the client asked.
        answer_id: the id of the client's answer.
        answer: P's whole answer.
        with_usage: the stream ends with the usage.
        continuous_usage: each chunk of the stream has the usage so far.
    """

    api: Api
    answer_id: str
    answer: JsonObject
    with_usage: bool = False
    continuous_usage: bool = False

    @classmethod
    def of(cls, request: ClientRequest, answer_id: str, answer: JsonObject, instance: str) -> "Opening":
        """What P's `answer` to `request` opens.

        Raises:
            UpstreamError: it is no answer with one choice and its usage.
        """
        usage, options = request.wants_usage, request.body.get("stream_options") or {}
        made = cls(request.api, answer_id, answer, usage, usage and bool(options.get("continuous_usage_stats")))
        if not made._well_formed():
            raise UpstreamError(
                f"prefill instance {instance} gave no usable answer of one token: {_shape(answer)}", stage="prefill"
            )
        return made

    @property
    def choice(self) -> JsonObject:
        """The one choice."""
        choice: JsonObject = self.answer["choices"][0]
        return choice

    @property
    def token(self) -> int:
        """The id of the token, where P tells it."""
        return int(self.answer["kv_transfer_params"]["epd"]["first"])

    @property
    def created(self) -> int | None:
        """When the answer began, in seconds since the epoch."""
        created = self.answer.get("created")
        return created if type(created) is int else None

    @property
    def text(self) -> str:
        """What the token says."""
        said = self.choice["message"].get("content") if self.api is Api.CHAT else self.choice.get("text")
        return said or ""

    @property
    def is_whole(self) -> bool:
        """Whether the text is there already; some characters take several tokens, special tokens have none."""
        return bool(self.text) and not self.text.endswith(_REPLACEMENT)

    def ends(self, max_tokens: int | None, max_model_len: int | None) -> bool:
        """Whether nothing comes after this token: it stops, it was the last one asked for, or the last with room."""
        full = max_model_len is not None and self.answer["usage"]["prompt_tokens"] + 1 >= max_model_len
        return self.choice.get("finish_reason") != "length" or max_tokens == 1 or full

    def body(self) -> bytes:
        """The whole answer of a request that ends with this token."""
        return jsonio.encode(
            {**self.answer, "id": self.answer_id, "kv_transfer_params": None, "ec_transfer_params": None}
        )

    def events(self) -> bytes:
        """How the stream begins that D goes on with."""
        return self._role() + self._token({"finish_reason": None})

    def whole_stream(self) -> bytes:
        """The whole stream of a request that ends with this token."""
        ended = {name: self.choice.get(name) for name in ("finish_reason", "stop_reason")}
        return self._role() + self._token(ended) + self._closing() + sse.DONE

    def _well_formed(self) -> bool:
        choices, usage = self.answer.get("choices"), self.answer.get("usage")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            return False
        said = isinstance(choices[0].get("message"), dict) if self.api is Api.CHAT else "text" in choices[0]
        return said and isinstance(usage, dict) and all(type(usage.get(name)) is int for name in _COUNTS)

    def _role(self) -> bytes:
        if self.api is not Api.CHAT:
            return b""
        choice = {"index": 0, "delta": {"role": self.choice["message"].get("role"), "content": ""}, "logprobs": None}
        chunk = self._chunk([{**choice, "finish_reason": None}], tokens=0)
        return sse.event(jsonio.encode({**chunk, "prompt_token_ids": None, "prompt_text": None}))

    def _token(self, end: JsonObject) -> bytes:
        chat = self.api is Api.CHAT
        said: JsonObject = {"delta": {"content": self.text}} if chat else {"text": self.text}
        choice = {"index": 0, **said, "logprobs": self.choice.get("logprobs"), **end}
        if not chat:
            choice = {**choice, "stop_reason": end.get("stop_reason"), "prompt_token_ids": None}
        chunk = self._chunk([{**choice, "token_ids": None}], tokens=1)
        if end["finish_reason"] and not self.with_usage:
            chunk |= self._given("system_fingerprint")
        return sse.event(jsonio.encode(chunk))

    def _closing(self) -> bytes:
        if not self.with_usage:
            return b""
        chunk = {**self._chunk([], tokens=None), "usage": self.answer["usage"]}
        return sse.event(jsonio.encode(_without_nulls({**chunk, **self._given("system_fingerprint", "metrics")})))

    def _chunk(self, choices: list[JsonObject], tokens: int | None) -> JsonObject:
        """A chunk; with the usage once it has `tokens`, if the client wants it so often."""
        chat = self.api is Api.CHAT
        chunk: JsonObject = {
            "id": self.answer_id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": self.answer.get("created"),
            "model": self.answer.get("model"),
            "choices": choices,
        }
        if self.continuous_usage and tokens is not None:
            prompt = self.answer["usage"]["prompt_tokens"]
            usage = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
            chunk["usage"] = {**usage, "completion_tokens_details": None} if chat else usage
        return chunk

    def _given(self, *names: str) -> JsonObject:
        return {name: self.answer[name] for name in names if self.answer.get(name) is not None}


_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(each) for name, each in value.items() if each is not None}


def _shape(answer: JsonObject) -> Any:
    choices = answer.get("choices")
    return f"{len(choices) if isinstance(choices, list) else 'no'} choices, fields {sorted(answer)}"
