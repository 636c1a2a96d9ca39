# SPDX-License-Identifier: Apache-2.0
"""Merging one-choice answers and streams."""

from vllm_epd.router.choices import StreamMerger, merge_answers, merge_usage


def usage(prompt, completion, **more):
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **more,
    }


def test_prompts_count_once_and_completions_together():
    assert merge_usage([usage(5, 1), usage(5, 2), usage(7, 3), usage(7, 4)], n=2) == usage(12, 10)
    assert merge_usage([usage(5, 1), usage(7, 3)], n=1) == usage(12, 4)


def test_details_of_completions_are_summed_and_those_of_the_prompt_kept():
    cached = {"cached_tokens": 3}
    merged = merge_usage(
        [
            usage(5, 1, completion_tokens_details={"reasoning_tokens": 1}, prompt_tokens_details=cached),
            usage(5, 2, completion_tokens_details={"reasoning_tokens": 2}, prompt_tokens_details=None),
        ],
        n=2,
    )
    assert merged["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert merged["prompt_tokens_details"] == cached


def test_answers_are_merged_in_order():
    answers = [
        {
            "id": f"chatcmpl-{name}",
            "model": "m",
            "choices": [{"index": 0, "message": {"content": name}}],
            "usage": usage(2, 1),
            "metrics": {"time_to_first_token_ms": 1},
            "kv_transfer_params": {"remote_host": "x"},
        }
        for name in ("a", "b")
    ]
    assert merge_answers(answers, n=2) == {
        "id": "chatcmpl-a",
        "model": "m",
        "choices": [{"index": 0, "message": {"content": "a"}}, {"index": 1, "message": {"content": "b"}}],
        "usage": usage(2, 2),
        "metrics": None,
        "kv_transfer_params": None,
    }
    assert answers[0]["choices"] == [{"index": 0, "message": {"content": "a"}}]


def _chunk(identity, created, **more):
    return {"id": identity, "created": created, "choices": [{"index": 0, "delta": {"content": "x"}}], **more}


def test_chunks_become_those_of_one_stream():
    merger = StreamMerger("chatcmpl-1", n=2)
    first = merger.chunk(1, _chunk("b", 20, prompt_token_ids=[1]))
    second = merger.chunk(0, _chunk("a", 10))
    assert first == {
        "id": "chatcmpl-1",
        "created": 20,
        "choices": [{"index": 1, "delta": {"content": "x"}}],
        "prompt_token_ids": [1],
    }
    assert (second["id"], second["created"], second["choices"][0]["index"]) == ("chatcmpl-1", 20, 0)


def test_usage_is_kept_back_for_one_closing_chunk():
    merger = StreamMerger("chatcmpl-1", n=2)
    assert merger.closing() is None
    for index in (1, 0):
        last = {"id": str(index), "created": 5, "model": "m", "choices": [], "usage": usage(4, 1 + index)}
        assert merger.chunk(index, {**last, "metrics": {"x": 1}}) is None
    assert merger.closing() == {
        "id": "chatcmpl-1",
        "created": 5,
        "model": "m",
        "choices": [],
        "usage": usage(4, 3),
    }


def test_usage_of_a_chunk_with_a_choice_goes_with_it():
    merger = StreamMerger("chatcmpl-1", n=1)
    assert merger.chunk(0, _chunk("a", 1, usage=usage(1, 1)))["usage"] == usage(1, 1)
    assert merger.closing() is None
