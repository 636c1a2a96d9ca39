# SPDX-License-Identifier: Apache-2.0
"""For each field of vLLM's requests: which stages get it, or why a disaggregated request cannot honour it.

P and D must render the same prompt from the same fields, or the KV cache of one means something else to the
other. Whatever can reach a renderer therefore goes to both, `tool_choice` and `response_format` included
(`--exclude-tools-when-tool-choice-none` and some models' templates read them). Media options go to whoever
encodes and to nobody else: they are part of an item's hash, and P and D are given that hash.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from vllm_epd.errors import BadRequestError
from vllm_epd.router.jsonio import JsonObject


class Dest(Enum):
    """Who gets a field."""

    ALL = auto()  # every stage
    MEDIA = auto()  # whoever encodes
    PROMPT = auto()  # P and D
    OUTPUT = auto()  # D: it concerns only what is generated
    NONE = auto()  # nobody: never taken from a client


class When(Enum):
    """Which routes cannot honour a field; one instance alone honours all but those refused always."""

    SPLIT = auto()  # P and D are two instances
    APART = auto()  # P and D are two, or media is encoded elsewhere
    ALWAYS = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of one field.

    Attributes:
        dest: who gets it.
        refused: on which routes it is refused; None if each can honour it.
        asks: whether the body really asks for it; defaults are no request.
        why: completes "`field` ..." for the client.
    """

    dest: Dest
    refused: When | None = None
    asks: Callable[[JsonObject], bool] = lambda body: True
    why: str = ""


def _rules(dest: Dest, *names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, Rule(dest))


def _given(name: str) -> Callable[[JsonObject], bool]:
    return lambda body: body.get(name) is not None


def _true(name: str) -> Callable[[JsonObject], bool]:
    return lambda body: bool(body.get(name))


def _truncates_by_default(body: JsonObject) -> bool:
    limits = ("max_tokens", "max_completion_tokens")
    return body.get("truncate_prompt_tokens") == -1 and not any(body.get(name) for name in limits)


def _echoes_logprobs(body: JsonObject) -> bool:
    return bool(body.get("echo")) and (body.get("logprobs") is not None or body.get("max_tokens") == 0)


def _smuggles(body: JsonObject) -> bool:
    xargs = body.get("vllm_xargs")
    return isinstance(xargs, dict) and not xargs.keys().isdisjoint(_TRANSFER)


_TRANSFER = ("ec_transfer_params", "kv_transfer_params")

_COMMON: Mapping[str, Rule] = {
    **_rules(Dest.ALL, "model", "cache_salt"),
    **_rules(Dest.PROMPT, "add_special_tokens", "truncation_side", "priority", "session_id"),
    **_rules(Dest.OUTPUT, "max_tokens", "n", "seed", "stream", "stream_options", "stream_interval"),
    **_rules(Dest.OUTPUT, "temperature", "top_p", "top_k", "min_p", "logit_bias", "allowed_token_ids"),
    **_rules(Dest.OUTPUT, "frequency_penalty", "presence_penalty", "repetition_penalty", "length_penalty"),
    **_rules(Dest.OUTPUT, "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens"),
    **_rules(Dest.OUTPUT, "bad_words", "watermarking", "structured_outputs", "thinking_token_budget"),
    **_rules(Dest.OUTPUT, "logprobs", "logprob_token_ids", "return_token_ids", "return_tokens_as_token_ids"),
    **_rules(Dest.OUTPUT, "skip_special_tokens", "spaces_between_special_tokens", "repetition_detection"),
    **_rules(Dest.OUTPUT, "request_id", "user", "routed_experts_prompt_start"),
    # vLLM reads these on its render endpoints only.
    **_rules(Dest.OUTPUT, "return_token_offsets", "mm_payload", "return_mm_kwargs"),
    "vllm_xargs": Rule(Dest.PROMPT, When.ALWAYS, _smuggles, "must not contain transfer parameters"),
    "truncate_prompt_tokens": Rule(
        Dest.PROMPT,
        When.SPLIT,
        _truncates_by_default,
        "= -1 without max_tokens would be cut differently by prefill and decode; set max_tokens",
    ),
    "prompt_logprobs": Rule(
        Dest.OUTPUT,
        When.SPLIT,
        _given("prompt_logprobs"),
        "needs the logits of the prompt, which decode never has",
    ),
    "use_beam_search": Rule(
        Dest.OUTPUT, When.APART, _true("use_beam_search"), "submits its beams without the transfer parameters"
    ),
    **{name: Rule(Dest.NONE, When.ALWAYS, _given(name), "is not taken from clients") for name in _TRANSFER},
}

CHAT: Mapping[str, Rule] = {
    **_COMMON,
    **_rules(Dest.PROMPT, "messages", "tools", "tool_choice", "response_format", "reasoning_effort"),
    **_rules(Dest.PROMPT, "documents", "chat_template", "chat_template_kwargs"),
    **_rules(Dest.PROMPT, "add_generation_prompt", "continue_final_message"),
    **_rules(Dest.MEDIA, "media_io_kwargs", "mm_processor_kwargs"),
    **_rules(Dest.OUTPUT, "max_completion_tokens", "top_logprobs", "parallel_tool_calls"),
    **_rules(Dest.OUTPUT, "include_reasoning", "return_prompt_text"),
    "echo": Rule(
        Dest.OUTPUT,
        When.SPLIT,
        _true("echo"),
        "asks for the log probabilities of the prompt, which decode never has",
    ),
}

COMPLETION: Mapping[str, Rule] = {
    **_COMMON,
    **_rules(Dest.PROMPT, "prompt", "suffix"),
    **_rules(Dest.OUTPUT, "response_format"),
    "echo": Rule(
        Dest.OUTPUT,
        When.SPLIT,
        _echoes_logprobs,
        "with logprobs, or without generating, needs the logits of the prompt, which decode never has",
    ),
    "prompt_embeds": Rule(Dest.NONE, When.ALWAYS, _given("prompt_embeds"), "is not taken from clients"),
}

#: A field that vLLM does not know is ignored by it; should it come to mean something, P and D agree on it.
UNKNOWN = Rule(Dest.PROMPT)


def select(rules: Mapping[str, Rule], body: JsonObject, *dests: Dest) -> JsonObject:
    """The part of `body` that goes to `dests`."""
    return {name: value for name, value in body.items() if rules.get(name, UNKNOWN).dest in dests}


def refuse(rules: Mapping[str, Rule], body: JsonObject, *on: When) -> None:
    """Check that a body asks for nothing that is refused on a route of these kinds.

    Raises:
        BadRequestError: it does; the message says what and why.
    """
    for name in body:
        rule = rules.get(name, UNKNOWN)
        if rule.refused in on and rule.asks(body):
            where = "" if rule.refused is When.ALWAYS else " while prefill and decode are served apart"
            if rule.refused is When.APART:
                where = " while encode, prefill and decode are served apart"
            raise BadRequestError(f"`{name}` cannot be honoured{where}: it {rule.why}", param=name)
