# SPDX-License-Identifier: Apache-2.0
"""What the user sees: progress, and a first request to copy."""

import base64
import io
import json
import shlex

import pytest
from PIL import Image
from rich.console import Console

from vllm_epd.launch.example import COLOUR, curl_command
from vllm_epd.launch.model import Model, served_name
from vllm_epd.launch.progress import Progress, State


class Clock:
    def __init__(self):
        self.now = 10.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def show(clock, **console):
    output = io.StringIO()
    progress = Progress(Console(file=output, width=100, **console), clock, {"router": "", "E0": "encode"})
    return progress, output


def test_each_change_is_a_line_without_a_terminal(clock):
    progress, output = show(clock)
    with progress:
        progress.set("E0", State.STARTING)
        clock.now += 41.4
        progress.set("E0", State.READY)
    assert output.getvalue().splitlines() == ["E0 (encode): starting", "E0 (encode): ready after 41 s"]


def test_table_counts_seconds_until_a_process_is_ready(clock):
    progress, _ = show(clock)
    progress.set("router", State.STARTING)
    clock.now += 2
    progress.set("router", State.READY)
    progress.set("E0", State.STARTING)
    clock.now += 5
    progress.set("E0", State.FAILED)
    clock.now += 9
    output = io.StringIO()
    Console(file=output, width=100).print(progress.table())
    header, *rows = [line.split() for line in output.getvalue().splitlines()]
    assert header == ["instance", "role", "state", "seconds"]
    assert rows == [["router", "ready", "2"], ["E0", "encode", "failed", "5"]]


def test_terminal_shows_the_table(clock):
    progress, output = show(clock, force_terminal=True)
    with progress:
        progress.set("E0", State.STARTING)
    assert "waiting for its turn" in output.getvalue()
    assert "E0 (encode)" not in output.getvalue()


def parse_curl(command):
    words = shlex.split(command)
    assert words[:2] == ["curl", "http://h:1/v1/chat/completions"]
    return json.loads(words[words.index("-d") + 1])


def test_example_carries_a_picture():
    body = parse_curl(curl_command("http://h:1", "it's", with_image=True))
    assert body["model"] == "it's"
    picture, text = body["messages"][0]["content"]
    assert text["type"] == "text"
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.convert("RGB").getcolors() == [(64 * 64, tuple(COLOUR))]


def test_example_for_a_text_only_topology_carries_none():
    body = parse_curl(curl_command("http://h:1", "m", with_image=False))
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "org/model"),
        (["--served-model-name", "a", "b"], "a"),
        (["--served-model-name=a"], "a"),
        (["--served-model-name", "a", "--served_model_name", "b"], "b"),
    ],
)
def test_model_is_called_as_it_is_served(arguments, name):
    assert served_name(Model("org/model"), arguments) == name
