# SPDX-License-Identifier: Apache-2.0
"""What the router looks for in an instance's answer before a client sees it. Pure.

An answer is decoded only if its bytes show that it has to be: a transfer parameter that is not null, or a
choice that failed. Quotes inside strings are escaped in JSON, so generated text cannot look like either.
"""

import re
from typing import Any

from vllm_epd.errors import UpstreamError
from vllm_epd.router import jsonio
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.sse import data_of

_TRANSFER = re.compile(rb'"(?:kv|ec)_transfer_params"\s*+:\s*+(?!null)')
_ERROR = b'{"error"'
_FAILURE_EVENT = b"data: " + _ERROR
_FAILED = re.compile(rb'"finish_reason"\s*+:\s*+"error"')


def clean_answer(raw: bytes, stage: str) -> bytes:
    """A whole answer without transfer parameters, which are no client's business.

    Raises:
        UpstreamError: a choice failed although the status says otherwise.
    """
    if not _TRANSFER.search(raw) and not _FAILED.search(raw):
        return raw
    answer = decode_answer(raw, stage)
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("finish_reason") == "error":
            raise UpstreamError("the instance failed while it generated", stage=stage)
    for name in ("kv_transfer_params", "ec_transfer_params"):
        if name in answer:
            answer[name] = None
    return jsonio.encode(answer)


def decode_answer(raw: bytes, stage: str) -> JsonObject:
    """An instance's answer, which must be a JSON object.

    Raises:
        UpstreamError: it is not.
    """
    try:
        answer = jsonio.decode(raw)
    except ValueError as error:
        raise UpstreamError(f"the {stage} instance answered with invalid JSON: {error}", stage=stage) from error
    if not isinstance(answer, dict):
        raise UpstreamError(f"the {stage} instance answered with something else than an object", stage=stage)
    return answer


def handed_over(answer: JsonObject, instance: str) -> JsonObject:
    """Where the KV cache of a prefill lies that another instance is to take over.

    Raises:
        UpstreamError: nowhere: the instance has prefilled for itself.
    """
    params = answer.get("kv_transfer_params")
    if isinstance(params, dict) and _any_block(params.get("remote_block_ids")):
        return params
    raise UpstreamError(
        f"prefill instance {instance} did not hand over its KV cache (no remote_block_ids in its answer);"
        " was it started with a KV connector?",
        stage="prefill",
    )


def offered(answer: JsonObject, transfer: str, instance: str) -> JsonObject:
    """What a prefill instance says of the KV cache that it was asked to offer as `transfer` over our own connector.

    Raises:
        UpstreamError: it offers none, or another one.
    """
    params = answer.get("kv_transfer_params")
    found = params.get("epd") if isinstance(params, dict) else None
    if isinstance(found, dict) and found.get("transfer") == transfer and isinstance(found.get("epoch"), str):
        return found
    raise UpstreamError(
        f"prefill instance {instance} did not offer its KV cache (no transfer {transfer} in its answer)",
        stage="prefill",
    )


def opening_failure(events: bytes, instance: str) -> UpstreamError | None:
    """The failure with which a stream begins, if it does; chunks that say nothing yet may come before it.

    It has the status that the error itself names. vLLM writes a chunk with the role alone before it looks at
    what came of the request.
    """
    for data in data_of(events):
        if data.startswith(_ERROR):
            return _failure(data, instance)
        if not _says_nothing(data):
            return None
    return None


def split_failure(events: bytes, instance: str) -> tuple[bytes, UpstreamError | None]:
    """What of some whole events comes before one that tells of a failure, and that failure if there is one."""
    at = 0 if events.startswith(_FAILURE_EVENT) else events.find(b"\n" + _FAILURE_EVENT) + 1
    if not events.startswith(_FAILURE_EVENT, at):
        return events, None
    return events[:at], _failure(next(data_of(events[at:])), instance)


def says_nothing(events: bytes) -> bool:
    """Whether all of some events together carry nothing but a role."""
    chunks = list(data_of(events))
    return bool(chunks) and all(_says_nothing(data) for data in chunks)


def _failure(data: bytes, instance: str) -> UpstreamError:
    answer = decode_answer(data, "decode")
    error = answer.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 502
    return UpstreamError(f"decode instance {instance} failed", stage="decode", status=status, body=data)


def _says_nothing(data: bytes) -> bool:
    try:
        choices = jsonio.decode(data)["choices"]
        return bool(choices) and not any(_spoken(choice) for choice in choices)
    except (ValueError, TypeError, LookupError, AttributeError):
        return False


def _spoken(choice: JsonObject) -> bool:
    delta = choice.get("delta") or {}
    said = [value for name, value in choice.items() if name not in ("index", "delta")]
    return any(said) or any(value for name, value in delta.items() if name != "role")


def _any_block(block_ids: Any) -> bool:
    """Whether block ids, which come in one list or in one per cache group, name a block."""
    if not isinstance(block_ids, list):
        return False
    return any(_any_block(each) if isinstance(each, list) else True for each in block_ids)
