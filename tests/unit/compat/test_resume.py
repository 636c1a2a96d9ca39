# SPDX-License-Identifier: Apache-2.0
"""A request whose first tokens are there already goes on from them."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.exceptions import VLLMClientError, VLLMValidationError  # noqa: E402
from vllm.parser.abstract_parser import DelegatingParser  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.v1.engine import EngineCoreRequest  # noqa: E402
from vllm.v1.engine.detokenizer import IncrementalDetokenizer  # noqa: E402

from vllm_epd.compat import items, resumable, resume  # noqa: E402
from vllm_epd.types import ROLE_ENV  # noqa: E402

MODEL: Any = SimpleNamespace(max_model_len=20, get_vocab_size=lambda: 100)
TRANSFER = {"transfer": "t", "epoch": "e-kv", "rank": 0, "tokens": 3}
RESUMED = {**TRANSFER, "sent": [9]}


def request(kv: Any = None, prompt: list[int] | None = None, max_tokens: int = 5) -> EngineCoreRequest:
    params = SamplingParams(max_tokens=max_tokens, extra_args={"kv_transfer_params": kv} if kv is not None else None)
    return EngineCoreRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3] if prompt is None else prompt,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def outcome(asked: EngineCoreRequest, *, decodes: bool = True) -> tuple[list[int] | None, int | None]:
    resume.apply(asked, MODEL, decodes=decodes)
    assert asked.sampling_params is not None
    return asked.prompt_token_ids, asked.sampling_params.max_tokens


@pytest.mark.parametrize("sent", [[9], [9, 8, 7]])
def test_the_tokens_sent_end_the_prompt_and_as_many_less_are_generated(sent: list[int]) -> None:
    prompt = [1, 2, 3]
    assert outcome(request({"epd": {**TRANSFER, "sent": sent}}, prompt)) == ([1, 2, 3, *sent], 5 - len(sent))
    assert prompt == [1, 2, 3]  # vLLM may share it with other requests


def test_an_instance_that_only_prefills_takes_them_in_for_its_one_token() -> None:
    asked = request({"epd": {"offer": "t", "sent": [9, 8]}}, max_tokens=1)
    assert outcome(asked, decodes=False) == ([1, 2, 3, 9, 8], 1)


@pytest.mark.parametrize(
    "kv",
    [None, {}, {"epd": None}, {"epd": TRANSFER}, {"epd": {**TRANSFER, "sent": []}}, {"do_remote_prefill": True}],
)
def test_a_request_that_does_not_ask_for_it_stays_as_it_is(kv: Any) -> None:
    assert outcome(request(kv)) == ([1, 2, 3], 5)


def test_a_request_without_sampling_stays_as_it_is() -> None:
    resume.apply(SimpleNamespace(sampling_params=None), MODEL, decodes=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "epd",
    [
        "x",
        [],
        {"sent": None},
        {"sent": 9},
        {"sent": [True]},
        {"sent": ["9"]},
        {"sent": [9, -1]},
        {"sent": [9, 100]},
    ],
)
def test_a_malformed_object_is_the_clients_mistake(epd: Any) -> None:
    asked = request({"epd": epd})
    with pytest.raises(VLLMValidationError, match="kv_transfer_params.epd") as caught:
        resume.apply(asked, MODEL, decodes=True)
    assert isinstance(caught.value, VLLMClientError)  # which vLLM answers with a 400
    assert asked.prompt_token_ids == [1, 2, 3]


@pytest.mark.parametrize(("length", "max_tokens"), [(3, 1), (19, 5), (25, 5)])
def test_where_nothing_can_follow_nothing_is_resumed(length: int, max_tokens: int) -> None:
    asked = request({"epd": RESUMED}, list(range(length)), max_tokens)
    with pytest.raises(VLLMValidationError, match="no token to generate"):
        resume.apply(asked, MODEL, decodes=True)


def test_a_prompt_of_embeddings_is_refused() -> None:
    asked = request({"epd": RESUMED})
    asked.prompt_token_ids = None
    with pytest.raises(VLLMValidationError, match="needs a prompt of token ids"):
        resume.apply(asked, MODEL, decodes=True)


def test_what_vllm_would_generate_at_most_is_generated_in_all() -> None:
    """Without a limit of the client vLLM fills the context; 17 tokens of 20 are left here, the first one included."""
    asked = request({"epd": RESUMED}, max_tokens=17)
    prompt, more = outcome(asked)
    assert prompt is not None
    assert more is not None
    assert len(prompt) + more == MODEL.max_model_len


def test_the_text_goes_on_where_the_first_token_ended() -> None:
    """The detokenizer of the resumed request says what that of the whole request says after its first token."""
    from transformers import AutoTokenizer

    from vllm_epd.demo import ensure_model

    tokenizer = AutoTokenizer.from_pretrained(ensure_model("qwen2.5-vl"))
    tokens = tokenizer.encode("A grüner Baum, 木 and 🌳 there")
    prompt, generated = tokens[:2], tokens[2:]
    whole = IncrementalDetokenizer.from_new_request(tokenizer, request(prompt=prompt))
    whole.update(generated[:1], False)
    assert whole.get_next_output_text(False, True).isascii()
    asked = request({"epd": {**TRANSFER, "sent": generated[:1]}}, prompt, 100)
    resume.apply(asked, SimpleNamespace(max_model_len=1000, get_vocab_size=lambda: 10**6), decodes=True)  # type: ignore[arg-type]
    resumed = IncrementalDetokenizer.from_new_request(tokenizer, asked)
    for token in generated[1:]:
        for each in (whole, resumed):
            each.update([token], False)
        assert resumed.get_next_output_text(False, True) == whole.get_next_output_text(False, True)
    assert "木" in resumed.output_text  # type: ignore[attr-defined]


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's class with a method of its own that makes a request to resume."""
    from vllm.v1.engine.input_processor import InputProcessor

    def process(self: Any, *args: Any, **kwargs: Any) -> EngineCoreRequest:
        return request({"epd": RESUMED})

    monkeypatch.setattr(InputProcessor, "process_inputs", process)
    return InputProcessor


@pytest.mark.parametrize(
    ("roles", "prompt"),
    [
        ("decode", [1, 2, 3, 9]),
        ("encode+decode", [1, 2, 3, 9]),
        ("prefill+decode", [1, 2, 3, 9]),
        ("prefill", [1, 2, 3, 9]),
        ("encode", [1, 2, 3]),
    ],
)
def test_only_an_instance_with_the_language_model_goes_on(
    processor: Any, monkeypatch: pytest.MonkeyPatch, roles: str, prompt: list[int]
) -> None:
    monkeypatch.setenv(ROLE_ENV, roles)
    resume.install()
    made = processor.process_inputs(SimpleNamespace(model_config=MODEL), "r", None, None, ())
    assert made.prompt_token_ids == prompt


@pytest.mark.parametrize("order", [(resume, items), (items, resume)])
def test_installing_again_wraps_no_more(processor: Any, monkeypatch: pytest.MonkeyPatch, order: Any) -> None:
    monkeypatch.setenv(ROLE_ENV, "decode")
    for each in order:
        each.install()
    both = processor.process_inputs
    for each in (resume, items):
        each.install()
    assert processor.process_inputs is both
    made = both(SimpleNamespace(model_config=MODEL), "r", None, None, ())
    assert made.prompt_token_ids == [1, 2, 3, 9]


class Tools:
    """A tool parser."""

    engine_based_streaming = False


class HoldsBack(Tools):
    """A tool parser that holds text back."""

    engine_based_streaming = True


def composed(base: type = DelegatingParser, **parsers: Any) -> type:
    return type("Parser", (base,), {"tool_parser_cls": None, "reasoning_parser_cls": None, **parsers})


class Own(DelegatingParser):
    """A parser that does everything itself."""

    def parse_delta(self, *args: Any, **kwargs: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("parser", "may"),
    [
        (None, True),
        (composed(tool_parser_cls=Tools), True),
        (composed(tool_parser_cls=HoldsBack), False),
        (composed(tool_parser_cls=Tools, reasoning_parser_cls=object), False),
        (composed(Own, tool_parser_cls=Tools), False),
    ],
)
def test_which_output_parsers_leave_text_alone(parser: Any, may: bool) -> None:
    assert resumable.leaves_text_alone(parser) is may


def settings(**changes: Any) -> tuple[Any, Any, Any]:
    """vLLM's configuration, chat API and arguments, all by default but for `changes`."""
    model = {
        "get_diff_sampling_param": lambda: changes.get("defaults", {}),
        "override_generation_config": changes.get("override", {}),
        **dict.fromkeys(resumable._HISTORY, None),
    }
    config = {"watermark_config": None, "speculative_config": None}
    return (
        SimpleNamespace(
            model_config=SimpleNamespace(**{name: changes.get(name, value) for name, value in model.items()}),
            aux_output_config=SimpleNamespace(enabled=changes.get("aux", False)),
            **{name: changes.get(name, value) for name, value in config.items()},
        ),
        SimpleNamespace(parser_cls=changes.get("parser")),
        SimpleNamespace(enable_force_include_usage=changes.get("usage", False)),
    )


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"defaults": {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05, "max_tokens": 100}}, True),
        ({"defaults": {"presence_penalty": 0.5}}, False),
        ({"defaults": {"frequency_penalty": 0.5}}, False),
        ({"defaults": {"max_tokens": 1}}, False),
        ({"override": {"max_new_tokens": 1}}, False),
        ({"parser": composed(reasoning_parser_cls=object)}, False),
        ({"usage": True}, False),
        ({"aux": True}, False),
        ({"watermark_config": object()}, False),
        ({"speculative_config": object()}, False),
        ({"logits_processors": ["a.b"]}, False),
        ({"is_encoder_decoder": True}, False),
    ],
)
def test_which_settings_of_a_server_allow_it(changes: Any, may: bool) -> None:
    assert resumable.may_resume(*settings(**changes)) is may


def test_the_settings_are_there() -> None:
    """What is asked of vLLM's configuration has these names in it."""
    from vllm.config import ModelConfig, VllmConfig

    for name in (*resumable._HISTORY, "override_generation_config", "get_diff_sampling_param"):
        assert name in ModelConfig.__dataclass_fields__ or hasattr(ModelConfig, name), name
    for name in ("watermark_config", "speculative_config", "aux_output_config"):
        assert name in VllmConfig.__dataclass_fields__, name
