# SPDX-License-Identifier: Apache-2.0
"""Workloads from files."""

import json

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.workload.files import read_trace, write_trace
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.planner.workload.spec import Poisson, RequestClass, Reuse, Trace, WorkloadSpec

ENTRY = {
    "time": "2026-01-01T00:00:10.000+00:00",
    "request_id": "a",
    "status": 200,
    "media_tokens": [["image", 256], ["audio", 50]],
    "prompt_tokens": 400,
    "completion_tokens": 20,
    "total_s": 4.0,
    "error": None,
}


@pytest.fixture
def written(tmp_path):
    def write(*values):
        (tmp_path / "trace").write_text(
            "\n".join(each if isinstance(each, str) else json.dumps(each) for each in values)
        )
        return tmp_path / "trace"

    return write


def test_a_trace_is_read_as_it_was_written(tmp_path):
    kinds = (RequestClass(images=1, videos=1, audios=1),)
    requests = generate(WorkloadSpec(Poisson(1.0), kinds, requests=30, reuse=Reuse(0.5)))
    write_trace(requests, tmp_path / "trace")
    found = read_trace(tmp_path / "trace")
    assert [(each.text_tokens, each.items) for each in found] == [(each.text_tokens, each.items) for each in requests]
    assert [each.at for each in found] == pytest.approx([each.at - requests[0].at for each in requests])


def test_the_access_log_gives_what_was_answered_by_the_time_at_which_it_came(written):
    earlier = {**ENTRY, "request_id": "b", "total_s": 6.5, "media_tokens": []}
    failed = [{**ENTRY, "status": 503}, {**ENTRY, "error": "the stream broke off"}]
    found = read_trace(written(ENTRY, earlier, *failed))
    assert [(each.number, each.at, each.text_tokens, each.output_tokens) for each in found] == [
        (0, 0.0, 400, 20),
        (1, 2.5, 94, 20),
    ]
    # 256 tokens are 448 x 448 pixels, 50 are two seconds.
    assert found[1].items == (Item(Kind.IMAGE, 448, 448), Item(Kind.AUDIO, frames=0, seconds=2.0))


def test_a_benchmarks_result_gives_lengths_and_times(written):
    result = {"input_lens": [10, 20, 30], "output_lens": [3, 0, 5], "start_times": [102.0, 101.0, 100.0], "ttfts": []}
    assert read_trace(written(result)) == (Request(0, 0.0, 30, 5), Request(1, 2.0, 10, 3))


@pytest.mark.parametrize("rate", [None, 4.0])
def test_a_trace_may_come_at_another_rate(written, rate):
    rows = [{"at": float(at), "text_tokens": 1, "output_tokens": 1} for at in range(11)]
    found = generate(WorkloadSpec(Trace(str(written(*rows)), rate)))
    assert found[-1].at == (10.0 if rate is None else 10 / 4)
    assert len(found) == 11


def test_a_trace_whose_requests_come_at_once_has_no_rate(written):
    rows = [{"at": 1.0, "text_tokens": 1, "output_tokens": 1}] * 2
    with pytest.raises(ConfigError, match=r"trace: all 2 requests come at the same time"):
        generate(WorkloadSpec(Trace(str(written(*rows)), 4.0)))


def test_the_access_log_gives_sizes_and_texts_where_it_knows_them(written):
    media = {"media_tokens": [["image", 15552], ["image", 256]], "media_sizes": [[4032, 3024], None]}
    (found,) = read_trace(written({**ENTRY, **media, "text_tokens": 22.0, "prompt_tokens": 730}))
    assert found.text_tokens == 22
    assert found.items == (Item(Kind.IMAGE, 4032, 3024), Item(Kind.IMAGE, 448, 448))


def test_without_media_the_prompt_is_the_text(written):
    (found,) = read_trace(written({**ENTRY, "media_tokens": [], "media_sizes": [], "text_tokens": 22.0}))
    assert found.text_tokens == ENTRY["prompt_tokens"]


ROW = {"at": 1.0, "text_tokens": 1, "output_tokens": 1}
BAD = {
    "empty": ((), "has no requests in it"),
    "blank": (("", "  "), "has no requests in it"),
    "only failures": (({**ENTRY, "status": 429},), "has no requests in it"),
    "no JSON": (("{",), "line 1: no JSON"),
    "something else": ((5,), "line 1: "),
    "a field missing": (({"at": 1.0, "text_tokens": 1},), "line 1: Object missing required field `output_tokens`"),
    "an unknown field": ((ROW | {"itemz": []},), "line 1: unknown field itemz; known: number, at,"),
    "an unknown field of an item": (
        (ROW | {"items": [{"kind": "image", "size": 1}]},),
        "unknown field size; known: kind,",
    ),
    "no time": ((json.dumps(ROW | {"at": float("nan")}),), "line 1: no JSON"),
    "a list": (([1, 2],), "line 1: expected an object, got a list"),
    "a negative time": (({"at": -1.0, "text_tokens": 1, "output_tokens": 1},), "comes at -1.0 s"),
    "a log of another kind": (({"request_id": "a"},), "line 1: 'status' is missing"),
    "a benchmark without times": (({"input_lens": [1], "output_lens": [1]},), "--save-detailed"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD.keys())
def test_a_file_without_requests_is_refused(written, values, message):
    with pytest.raises(ConfigError) as refused:
        read_trace(written(*values))
    assert message in str(refused.value)
    assert "trace" in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere"):
        read_trace(tmp_path / "nowhere")
