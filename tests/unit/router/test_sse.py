# SPDX-License-Identifier: Apache-2.0
"""Cutting a stream of bytes into events."""

import pytest

from vllm_epd.router.sse import DONE, EventSplitter, data_of, event

STREAM = event(b'{"a":1}') + b": keep-alive\n\n" + event(b'{"b":"\\n\\n"}') + DONE


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_bytes_come_out_unchanged_and_in_whole_events(size):
    splitter = EventSplitter()
    blocks = [splitter.feed(STREAM[at : at + size]) for at in range(0, len(STREAM), size)]
    assert b"".join(blocks) == STREAM
    assert all(block.endswith(b"\n\n") for block in blocks if block)
    assert splitter.done
    assert splitter.close() == b""


def test_an_event_comes_out_as_soon_as_it_is_whole():
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n") == b""
    assert splitter.feed(b"\ndata: 2\n\ndata: 3") == b"data: 1\n\ndata: 2\n\n"
    assert not splitter.done
    assert splitter.close() == b"data: 3"


def test_a_stream_without_its_end_is_not_done():
    splitter = EventSplitter()
    assert not splitter.done
    splitter.feed(event(b'"data: [DONE]"'))
    assert not splitter.done


def test_a_closing_event_without_a_blank_line_counts():
    splitter = EventSplitter()
    splitter.feed(event(b"1") + b"data: [DONE]\n")
    assert splitter.close() == b"data: [DONE]\n"
    assert splitter.done


def test_the_data_of_events():
    assert list(data_of(STREAM)) == [b'{"a":1}', b'{"b":"\\n\\n"}']
    assert list(data_of(b"")) == []
