# SPDX-License-Identifier: Apache-2.0
"""A request whose first tokens other instances have generated goes on from them.

These tokens are appended to the prompt once vLLM has turned the request into token ids and limits: detokenizer,
penalties and usage then take prompt and tokens for the prompt, and placeholders of media keep their places before them.
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


def apply(request: "EngineCoreRequest", model_config: "ModelConfig", *, decodes: bool) -> None:
    """Have `request` go on from the tokens that its transfer parameters name, in place; usually they name none.

    vLLM has derived the limit on new tokens from the request, the context and the server's defaults by now, all of
    them for the prompt alone; so as many tokens less are right however it came to be.

    Args:
        request: as vLLM has processed it.
        model_config: of the engine.
        decodes: whether this instance generates the rest of the answer; otherwise it only prefills, for one token.

    Raises:
        VLLMValidationError: the parameters are malformed, or nothing can come after these tokens.
    """
    sent = _sent(request)
    if not sent:
        return
    prompt, params = request.prompt_token_ids, request.sampling_params
    if prompt is None or params is None or params.max_tokens is None:
        raise _refusal("needs a prompt of token ids and sampling parameters")
    if max(sent) >= model_config.get_vocab_size():
        raise _refusal(f"has a token {max(sent)} outside of the vocabulary among those sent")
    if len(prompt) + len(sent) >= model_config.max_model_len or (decodes and params.max_tokens <= len(sent)):
        raise _refusal(f"leaves no token to generate after the {len(sent)} that were sent")
    request.prompt_token_ids = [*prompt, *sent]
    if decodes:
        params.max_tokens -= len(sent)


def install() -> None:
    """Have an instance with the language model go on from such tokens; a second call does nothing."""
    roles = RoleSet.parse(os.environ[ROLE_ENV])
    if not roles.language_model:
        return
    from vllm.v1.engine.input_processor import InputProcessor

    process = InputProcessor.process_inputs
    if hasattr(process, MARK):
        return

    @functools.wraps(process)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        # ### PATCH START sent-tokens
        apply(request, self.model_config, decodes=roles.decode)
        # ### PATCH END
        return request

    setattr(process_inputs, MARK, True)
    InputProcessor.process_inputs = process_inputs


def _sent(request: "EngineCoreRequest") -> list[int]:
    """The tokens to go on from; none where the request does not ask for that."""
    extra = (request.sampling_params and request.sampling_params.extra_args) or {}
    params = extra.get("kv_transfer_params")
    asked = params.get("epd") if isinstance(params, dict) else None
    if asked is None:
        return []
    sent = asked.get("sent", []) if isinstance(asked, dict) else None
    if not isinstance(sent, list) or not all(type(token) is int and token >= 0 for token in sent):
        raise _refusal("must be an object whose `sent` is a list of token ids")
    return sent


def _refusal(why: str) -> "VLLMValidationError":
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(f"kv_transfer_params.epd {why}.", parameter="kv_transfer_params")
