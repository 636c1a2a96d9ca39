# SPDX-License-Identifier: Apache-2.0
"""A request whose first token another instance has sampled goes on from it.

The token is appended to the prompt once vLLM has turned the request into token ids and limits: detokenizer, penalties
and usage then take prompt and token for the prompt, and placeholders of media keep their places before it.
"""

import functools
import os
from typing import TYPE_CHECKING, Any

from vllm_epd.types import ROLE_ENV, RoleSet

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine import EngineCoreRequest

MARK = "epd_resume"


def apply(request: "EngineCoreRequest", model_config: "ModelConfig") -> None:
    """Have `request` go on from the first token that its transfer parameters name, in place; usually they name none.

    vLLM has derived the limit on new tokens from the request, the context and the server's defaults by now, all of
    them for the prompt alone; so one token less is right however it came to be.

    Raises:
        VLLMValidationError: the parameters are malformed, or nothing can come after that token.
    """
    first = _first_token(request)
    if first is None:
        return
    prompt, params = request.prompt_token_ids, request.sampling_params
    if prompt is None or params is None or params.max_tokens is None:
        raise _refusal("needs a prompt of token ids and sampling parameters")
    if first >= model_config.get_vocab_size():
        raise _refusal(f"has a first token {first} outside of the vocabulary")
    if params.max_tokens < 2 or len(prompt) + 1 >= model_config.max_model_len:
        raise _refusal("leaves no token to generate after the first one")
    request.prompt_token_ids = [*prompt, first]
    params.max_tokens -= 1


def install() -> None:
    """Have an instance that only decodes go on from first tokens; a second call does nothing."""
    roles = RoleSet.parse(os.environ[ROLE_ENV])
    if not roles.decode or roles.prefill:
        return
    from vllm.v1.engine.input_processor import InputProcessor

    process = InputProcessor.process_inputs
    if hasattr(process, MARK):
        return

    @functools.wraps(process)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        # ### PATCH START first-token
        apply(request, self.model_config)
        # ### PATCH END
        return request

    setattr(process_inputs, MARK, True)
    InputProcessor.process_inputs = process_inputs


def _first_token(request: "EngineCoreRequest") -> int | None:
    """The token to go on from; None where the request does not ask for that."""
    extra = (request.sampling_params and request.sampling_params.extra_args) or {}
    params = extra.get("kv_transfer_params")
    asked = params.get("epd") if isinstance(params, dict) else None
    if asked is None:
        return None
    if not isinstance(asked, dict) or type(resume := asked.get("resume", False)) is not bool:
        raise _refusal("must be an object whose `resume` is true or false")
    if not resume:
        return None
    first = asked.get("first")
    if type(first) is not int or first < 0:
        raise _refusal(f"must name a first token to resume from, got {first!r}")
    return first


def _refusal(why: str) -> "VLLMValidationError":
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(f"kv_transfer_params.epd {why}.", parameter="kv_transfer_params")
