# SPDX-License-Identifier: Apache-2.0
"""Whether D may go on from a first token that P has sampled and the client has seen already. Pure.

D then takes prompt and first token for its prompt. A request may go this way if every later token, and everything else
that the client sees, is the same as if D had generated the first token too. So nothing may need the history of the
output (penalties on what was generated, grammars, banned words, minimal lengths, stop strings, which may begin in the
first token), a sampler's state (seeds), or the boundary between prompt and output (echo, token ids, text offsets).
A repetition penalty may: vLLM applies it to prompt and output alike. What is not listed here does not go this way.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vllm_epd.router.instances import Instance
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.requests import Api, ClientRequest

#: Judges one value of a field.
Allowed = Callable[[Any], bool]

#: The limit by which an instance says that its own settings leave all that as it is.
RESUME = "resume"


def _any(value: Any) -> bool:
    return True


def _one_of(*values: Any) -> Allowed:
    """Null, or a value that asks for nothing; of its type, for JSON tells 0 from false."""
    return lambda value: value is None or any(type(value) is type(each) and value == each for each in values)


def _number_of(zero: float) -> Allowed:
    return lambda value: value is None or (_is_number(value) and value == zero)


def _positive(value: Any) -> bool:
    return value is None or (type(value) is int and value > 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _stream_options(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(type(each) is bool for each in value.values()))


def _fields(allowed: Allowed, *names: str) -> dict[str, Allowed]:
    return dict.fromkeys(names, allowed)


_COMMON: Mapping[str, Allowed] = {
    # Shape the prompt, or name the request.
    **_fields(_any, "model", "cache_salt", "add_special_tokens", "priority", "session_id", "request_id", "user"),
    # Shape each token by itself.
    **_fields(_any, "temperature", "top_p", "top_k", "min_p", "logit_bias", "allowed_token_ids", "repetition_penalty"),
    **_fields(_any, "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens"),
    # Mean nothing here: beam search alone, the render endpoints alone, log probabilities of the chat API alone.
    **_fields(_any, "length_penalty", "return_token_offsets", "mm_payload", "return_mm_kwargs", "truncation_side"),
    **_fields(_any, "return_tokens_as_token_ids"),
    # P gets other values than D, so that what only D can refuse would come too late.
    **_fields(_positive, "max_tokens", "stream_interval"),
    "stream": _one_of(True, False),
    "stream_options": _stream_options,
    # Need what comes before a token, unless they ask for nothing.
    "n": _number_of(1),
    "seed": _any,
    **_fields(_number_of(0), "frequency_penalty", "presence_penalty", "min_tokens", "routed_experts_prompt_start"),
    **_fields(_one_of("", []), "stop"),
    **_fields(_one_of([]), "bad_words", "logprob_token_ids"),
    **_fields(_one_of(False), "watermarking", "use_beam_search", "echo", "return_token_ids"),
    **_fields(_one_of(), "structured_outputs", "thinking_token_budget", "repetition_detection", "prompt_logprobs"),
    **_fields(_one_of(), "truncate_prompt_tokens", "kv_transfer_params", "ec_transfer_params"),
    **_fields(_one_of({}), "vllm_xargs"),
    "spaces_between_special_tokens": _one_of(True),
    "response_format": _one_of({"type": "text"}),
}

CHAT: Mapping[str, Allowed] = {
    **_COMMON,
    **_fields(_any, "messages", "reasoning_effort", "documents", "chat_template", "chat_template_kwargs"),
    **_fields(_any, "add_generation_prompt", "continue_final_message", "media_io_kwargs", "mm_processor_kwargs"),
    **_fields(_any, "logprobs", "top_logprobs", "parallel_tool_calls"),
    "max_completion_tokens": _positive,
    "tools": _one_of(),
    "tool_choice": lambda value: value == "none",  # null lets vLLM look for calls all the same
    "include_reasoning": _one_of(True),
    "return_prompt_text": _one_of(False),
}

COMPLETION: Mapping[str, Allowed] = {
    **_COMMON,
    **_fields(_any, "prompt", "suffix"),
    "logprobs": _one_of(),  # their text offsets count from the first token
    "prompt_embeds": _one_of(),
}


def may_resume(request: ClientRequest, prefill: Instance, decode: Instance) -> bool:
    """Whether the first token of `request` may come from `prefill` and all others from `decode`."""
    rules = CHAT if request.api is Api.CHAT else COMPLETION
    return (
        all(bool(each.info.limits.get(RESUME)) for each in (prefill, decode))
        and len(request.branches) == 1
        and all(name in rules and rules[name](value) for name, value in request.body.items())
        and _seed_is_idle(request.body)
        and (request.stream or not request.body.get("stream_options"))
    )


def _seed_is_idle(body: JsonObject) -> bool:
    """A seed means nothing to greedy sampling, which must be asked for: a server's default may be another."""
    temperature = body.get("temperature")
    return body.get("seed") is None or (_is_number(temperature) and temperature == 0)
