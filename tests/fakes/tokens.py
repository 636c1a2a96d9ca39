# SPDX-License-Identifier: Apache-2.0
"""A stub of an instance that generates tokens, each a function of all before it, in vLLM's own forms.

What needs the history of the output, as penalties and seeds do, depends on the output alone here too. So an answer that
goes on from tokens which it takes for a part of its prompt is that of a single instance only where it may be.

A prompt can say what happens: `half@2` makes the third token one without a text of its own, `eos@2` makes it the end.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tests.fakes.instance import FakeInstance, Seen, error_body, event, is_chat, prompt_words

EOS, HALF, WORDS = 0, 1, 60
CREATED = {"P": 1700000000, "D": 1700000002}
MOST_TOKENS = 12

#: Epochs of KV agents to the transfers that they offer, each with the length of its prompt.
_OFFERED: dict[str, dict[str, int]] = {}


@dataclass(frozen=True)
class Token:
    """One generated token and what is said of it."""

    number: int
    text: str
    logprobs: dict[str, Any]


class TokenInstance(FakeInstance):
    """An instance whose answers are made of tokens; with `kv="epd"`, P offers prompts and D goes on from them.

    Attributes:
        taken: the transfers that it has taken over, each with how many tokens it went on from.
    """

    def __init__(self, letters: str, **kwargs: Any) -> None:
        limits = {"max_model_len": 1000, "resume": 1, **(kwargs.pop("limits", None) or {})}
        super().__init__(letters, limits=limits, **kwargs)
        self.taken: list[tuple[str, int]] = []
        self._created = CREATED["P" if self.roles.prefill else "D"]
        self._longest = limits["max_model_len"]

    def _problem(self, seen: Seen) -> dict[str, Any] | None:
        params = _epd(seen)
        if "transfer" in params:
            length = _OFFERED.get(params["epoch"], {}).get(params["transfer"])
            words = len(prompt_words(seen.body, 0))
            if length != params["tokens"] or not words <= length <= words + len(_sent(seen)):
                return error_body("no such KV cache")
            self.taken.append((params["transfer"], len(_sent(seen))))
        return super()._problem(seen)

    def _whole(self, seen: Seen) -> dict[str, Any]:
        if seen.kind == "encode":
            return super()._whole(seen)
        tokens, finish = self._generate(seen)
        text = _cut(seen.body, "".join(token.text for token in tokens))
        answer = {
            "id": _prefix(seen) + seen.request_id,
            "object": "chat.completion" if is_chat(seen) else "text_completion",
            "created": self._created,
            "model": seen.body.get("model") or "tiny",
            "choices": [self._choice(seen, text, tokens, finish)],
            "usage": {**self._usage(seen, len(tokens)), "prompt_tokens_details": None},
            "kv_transfer_params": self._offer(seen, tokens),
            "ec_transfer_params": None,
        }
        if (seen.body.get("ec_transfer_params") or {}).get("epd"):
            answer["ec_transfer_params"] = self._described(seen)
        return answer

    async def _events(self, seen: Seen) -> AsyncIterator[bytes]:
        if is_chat(seen):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
            prompt = [7, 8] if seen.body.get("return_token_ids") else None
            yield event({**self._chunk(seen, [choice], 0), "prompt_token_ids": prompt, "prompt_text": None})
        tokens, finish = self._generate(seen)
        if self.does.silent is not None:
            await self.does.silent.wait()
        for number, token in enumerate(tokens, 1):
            yield event(self._chunk(seen, [self._delta(seen, token, finish if number == len(tokens) else "")], number))
            if number == 1 and self.does.gate is not None:
                await self.does.gate.wait()
        if (seen.body.get("stream_options") or {}).get("include_usage"):
            yield event({**self._chunk(seen, [], None), "usage": self._usage(seen, len(tokens))})
        yield b"data: [DONE]\n\n"

    def _offer(self, seen: Seen, tokens: list[Token]) -> dict[str, Any] | None:
        transfer = _epd(seen).get("offer")
        if transfer is None:
            return None
        length, epoch = len(prompt_words(seen.body, 0)) + len(_sent(seen)), f"{self.epoch}-kv"
        _OFFERED.setdefault(epoch, {})[transfer] = length
        first = tokens[0].number
        return {"epd": {"transfer": transfer, "epoch": epoch, "rank": 0, "tokens": length, "first": first}}

    def _generate(self, seen: Seen) -> tuple[list[Token], str]:
        """The tokens of an answer and why it ends."""
        body, words = seen.body, prompt_words(seen.body, 0)
        prompt = [*(_number(word) for word in words), *_sent(seen)]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or (MOST_TOKENS if is_chat(seen) else 16)
        if seen.kind != "prefill":
            limit = min(limit, self._longest - len(words)) - len(_sent(seen))
        made: list[int] = []
        while len(made) < limit:
            said = _said(words, len(prompt) + len(made) - len(words))
            made.append(_next(body, prompt, made) if said is None else said)
            if made[-1] == EOS:
                return [_token(number) for number in made], "stop"
        return [_token(number) for number in made], "length"

    def _choice(self, seen: Seen, text: str, tokens: list[Token], finish: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if is_chat(seen) else {"text": text}
        return {
            "index": 0,
            **said,
            "logprobs": _logprobs(seen, tokens),
            "finish_reason": finish,
            "stop_reason": None,
            "token_ids": _ids(seen, tokens),
        }

    def _delta(self, seen: Seen, token: Token, finish: str) -> dict[str, Any]:
        choice = self._choice(seen, token.text, [token], finish)
        if not is_chat(seen):
            return {**choice, "finish_reason": finish or None, "prompt_token_ids": None}
        del choice["message"]
        ended = {"finish_reason": finish, "stop_reason": None} if finish else {"finish_reason": None}
        return {
            "index": 0,
            "delta": {"content": token.text},
            "logprobs": choice["logprobs"],
            **ended,
            "token_ids": choice["token_ids"],
        }

    def _chunk(self, seen: Seen, choices: list[dict[str, Any]], tokens: int | None) -> dict[str, Any]:
        chunk = {
            "id": _prefix(seen) + seen.request_id,
            "object": "chat.completion.chunk" if is_chat(seen) else "text_completion",
            "created": self._created,
            "model": seen.body.get("model") or "tiny",
            "choices": choices,
        }
        if (seen.body.get("stream_options") or {}).get("continuous_usage_stats") and tokens is not None:
            details = {"completion_tokens_details": None} if is_chat(seen) else {}
            chunk["usage"] = {**self._usage(seen, tokens), **details}
        return chunk

    def _usage(self, seen: Seen, tokens: int) -> dict[str, int]:
        prompt = len(prompt_words(seen.body, 0)) + len(_sent(seen))
        return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}


def _epd(seen: Seen) -> dict[str, Any]:
    params: dict[str, Any] = (seen.body.get("kv_transfer_params") or {}).get("epd") or {}
    return params


def _sent(seen: Seen) -> list[int]:
    """Tokens of the answer that the client has already."""
    sent: list[int] = _epd(seen).get("sent", [])
    return sent


def _ids(seen: Seen, tokens: list[Token]) -> list[int] | None:
    return [token.number for token in tokens] if seen.body.get("return_token_ids") else None


def _prefix(seen: Seen) -> str:
    return "chatcmpl-" if is_chat(seen) else "cmpl-"


def _number(word: Any) -> int:
    return int.from_bytes(hashlib.sha256(str(word).encode()).digest()[:2], "big") % WORDS + 2


def _next(body: dict[str, Any], prompt: list[int], made: list[int]) -> int:
    context: list[Any] = [prompt + made]
    if body.get("temperature") != 0 and body.get("seed") is not None:
        context += [body["seed"], len(made)]
    if body.get("presence_penalty") or body.get("min_tokens") or body.get("bad_words"):
        context.append(made)
    context += [body.get("repetition_penalty"), body.get("logit_bias"), body.get("top_k"), body.get("temperature")]
    number = _number(context)
    allowed = body.get("allowed_token_ids")
    return int(allowed[number % len(allowed)]) if allowed else number


def _said(words: list[str], place: int) -> int | None:
    """What the prompt says of the token at `place` of the answer."""
    named = {f"eos@{place}": EOS, f"half@{place}": HALF}
    return next((number for word, number in named.items() if word in words), None)


def _token(number: int) -> Token:
    text = "" if number in (EOS, HALF) else f" w{number}"
    return Token(number, text, {"token": f"token_id:{number}", "logprob": -number / 8, "bytes": None})


def _logprobs(seen: Seen, tokens: list[Token]) -> dict[str, Any] | None:
    if not seen.body.get("logprobs"):
        return None
    if is_chat(seen):
        return {"content": [token.logprobs for token in tokens]}
    return {"text_offset": [4 * place for place in range(len(tokens))], "tokens": [token.text for token in tokens]}


def _cut(body: dict[str, Any], text: str) -> str:
    """The text up to the first stop string."""
    stop = body.get("stop") or []
    ends = [text.find(each) for each in ([stop] if isinstance(stop, str) else stop) if each in text]
    return text[: min(ends)] if ends else text
