# SPDX-License-Identifier: Apache-2.0
"""The OpenAI Python client against the router."""

import pytest

from tests.fakes.instance import item_hash
from tests.unit.router.conftest import image, text

openai = pytest.importorskip("openai")

CAT = image("cat")
KEY = item_hash(CAT["image_url"]["url"])


@pytest.fixture
async def client(cluster):
    await cluster.up("E", "P", "D")
    async with openai.AsyncOpenAI(base_url=cluster.url + "/v1", api_key="key", max_retries=0) as opened:
        yield opened


def _ask(client, content, **more):
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}], **more)


async def test_whole_answer(client):
    answer = await _ask(client, [text("see"), CAT], max_tokens=5)
    assert answer.choices[0].message.content == f"see <{KEY}>"
    assert answer.usage.total_tokens == 4


@pytest.mark.parametrize("n", [1, 2])
async def test_stream(client, n):
    told = {}
    stream = await _ask(client, [CAT], n=n, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        for choice in chunk.choices:
            told[choice.index] = told.get(choice.index, "") + choice.delta.content
    assert told == dict.fromkeys(range(n), f"<{KEY}>")
    assert chunk.usage.completion_tokens == n


async def test_completion(client):
    answer = await client.completions.create(model="tiny", prompt=["a", "b"])
    assert [choice.text for choice in answer.choices] == ["a", "b"]


async def test_models(client):
    assert [card.id async for card in client.models.list()] == ["tiny"]


async def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="other", messages=[])
    with pytest.raises(openai.BadRequestError) as caught:
        await _ask(client, "x", extra_body={"prompt_logprobs": 1})
    assert caught.value.body["param"] == "prompt_logprobs"


async def test_a_broken_stream_is_an_error(client, cluster):
    decode = cluster._fakes[-1]
    decode.does.words = ["one", "two", "three"]
    decode.does.break_after = 1
    with pytest.raises(openai.APIError, match="broke off"):
        async for _ in await _ask(client, "x", stream=True):
            pass
