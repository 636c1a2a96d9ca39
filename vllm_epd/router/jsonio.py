# SPDX-License-Identifier: Apache-2.0
"""JSON in and out; each body is parsed once and strings inside it are never looked into."""

from typing import Any

import msgspec

from vllm_epd.errors import BadRequestError
from vllm_epd.router.web.messages import Response

JsonObject = dict[str, Any]

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder()


def encode(value: Any) -> bytes:
    """`value` as compact JSON."""
    return _ENCODER.encode(value)


def decode(raw: bytes) -> Any:
    """The value that `raw` spells.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return _DECODER.decode(raw)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def decode_request(raw: bytes) -> JsonObject:
    """A client's body, which must be a JSON object.

    Raises:
        BadRequestError: it is not.
    """
    try:
        value = decode(raw)
    except ValueError as error:
        raise BadRequestError(f"the request body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequestError("the request body must be a JSON object")
    return value


def answer(value: Any, status: int = 200) -> Response:
    """An answer of JSON."""
    return Response(encode(value), status)
