# SPDX-License-Identifier: Apache-2.0
"""Whether a server's own settings leave a request the same answer when it goes on from its first tokens."""

from typing import Any

_HISTORY = (
    "logits_processors",
    "is_diffusion",
    "is_encoder_decoder",
    "return_sampling_mask",
    "enable_trace_replay",
)
"""What a model's configuration may ask for that needs all tokens of an answer in one place."""


def may_resume(vllm_config: Any, chat: Any, args: Any) -> bool:
    """Whether the server's own settings leave a request the same answer when it goes on from its first tokens.

    Args:
        vllm_config: of the engine.
        chat: vLLM's object behind the chat API.
        args: vLLM's arguments.
    """
    model = vllm_config.model_config
    defaults = model.get_diff_sampling_param()
    penalties = any(defaults.get(name) for name in ("presence_penalty", "frequency_penalty"))
    limits = (defaults.get("max_tokens"), model.override_generation_config.get("max_new_tokens"))
    return (
        not penalties
        and all(limit is None or limit > 1 for limit in limits)
        and leaves_text_alone(chat.parser_cls)
        and not args.enable_force_include_usage
        and not any(getattr(vllm_config, name) for name in ("watermark_config", "speculative_config"))
        and not vllm_config.aux_output_config.enabled
        and not any(getattr(model, name) for name in _HISTORY)
    )


def leaves_text_alone(parser: Any) -> bool:
    """Whether vLLM's output parser, None where there is none, passes on the text of requests without tools.

    A reasoning parser begins in the first token, and a parser with an engine of its own holds text back.
    """
    from vllm.parser.abstract_parser import DelegatingParser

    if parser is None:
        return True
    composed = issubclass(parser, DelegatingParser) and all(
        getattr(parser, name) is getattr(DelegatingParser, name) for name in ("parse", "parse_delta")
    )
    tool_parser = parser.tool_parser_cls
    return (
        composed
        and parser.reasoning_parser_cls is None
        and (tool_parser is None or not tool_parser.engine_based_streaming)
    )
