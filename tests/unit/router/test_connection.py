# SPDX-License-Identifier: Apache-2.0
"""Requests to instances over real sockets: what is kept open, what is closed, and what goes wrong."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from vllm_epd.errors import UpstreamError
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import Timeouts
from vllm_epd.router.connections import Address
from vllm_epd.router.failures import UnreachableError
from vllm_epd.router.instances import Instance
from vllm_epd.types import Fingerprint, InstanceInfo, Role, RoleSet

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """Listens, reads each request to its end, and answers as told; counts connections and what it read."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.connections = 0
        self.requests = []
        self.closed = asyncio.Event()
        self.serving = []

    async def serve(self, reader, writer):
        self.serving.append(asyncio.current_task())
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((head, await reader.readexactly(length)))
                answer = self.answers.pop(0)
                writer.write(answer.removesuffix(b"CLOSE"))
                await writer.drain()
                if answer.endswith(b"CLOSE"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


@asynccontextmanager
async def talking_to(*answers, **timeouts):
    peer = Peer(*answers)
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    client = InstanceClient(Timeouts(**timeouts))
    instance = instance_at(server.sockets[0].getsockname()[1])
    try:
        yield peer, lambda body=b"{}": client.post(Role.DECODE, instance, "/v1", body, {"X-A": "ä"})
    finally:
        client.close()
        server.close()
        await asyncio.gather(*peer.serving)


def instance_at(port):
    info = InstanceInfo(
        "d", "e", f"http://127.0.0.1:{port}", RoleSet.parse("decode"), ("m",), Fingerprint("", "", "", "", "")
    )
    return Instance(info, 0.0)


async def test_a_connection_serves_one_request_after_the_other():
    async with talking_to(OK, OK, OK) as (peer, post):
        for body in (b'{"a":1}', (b"{", b'"a"', b":1}"), b"x" * 3_000_000):
            async with post(body) as answer:
                assert await answer.read() == b"{}"
        assert [body for _, body in peer.requests] == [b'{"a":1}', b'{"a":1}', b"x" * 3_000_000]
        assert "X-A: ä\r\n".encode() in peer.requests[0][0]
        assert peer.connections == 1


async def test_whatever_comes_before_an_answer_the_next_one_is_read_the_same():
    told_before = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK
    chunked = STREAM + b"3\r\none\r\n0\r\n\r\n"
    async with talking_to(told_before, chunked, told_before, OK) as (peer, post):
        for expected in (b"{}", b"one", b"{}", b"{}"):
            async with post() as answer:
                assert await answer.read() == expected
        assert peer.connections == 1


async def test_pieces_go_out_in_order_however_many_turns_they_take():
    pieces = [b"a" * 10, memoryview(b"b" * 700_000)[1:], b"", *[bytes([each]) * 90_000 for each in b"cdefghijk"]]
    async with talking_to(OK) as (peer, post):
        async with post(pieces) as answer:
            assert await answer.read() == b"{}"
        assert peer.requests[0][1] == b"".join(pieces)


async def test_requests_at_once_have_connections_of_their_own():
    async with talking_to(OK, OK) as (peer, post):
        async with post() as one, post() as two:
            assert (await one.read(), await two.read()) == (b"{}", b"{}")
        assert peer.connections == 2


@pytest.mark.parametrize("answer", [OK + b"CLOSE", OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")])
async def test_a_connection_that_the_instance_gives_up_is_not_used_again(answer):
    async with talking_to(answer, OK) as (peer, post):
        async with post() as first:
            await first.read()
        await asyncio.sleep(0.05)
        async with post() as second:
            await second.read()
        assert peer.connections == 2


async def test_an_answer_that_ends_with_its_connection():
    untold = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nallCLOSE"
    async with talking_to(untold) as (_, post), post() as answer:
        assert await answer.read() == b"all"


async def test_a_stream_comes_as_it_is_sent_and_ends_with_its_last_chunk():
    async with talking_to(STREAM + b"3\r\none\r\n0\r\n\r\n", OK) as (peer, post):
        async with post() as answer:
            assert answer.is_stream
            assert b"".join([chunk async for chunk in answer.chunks()]) == b"one"
        async with post() as answer:
            await answer.read()
        assert peer.connections == 1


async def test_an_answer_that_is_not_read_to_its_end_closes_the_connection():
    async with talking_to(STREAM + b"3\r\none\r\n") as (peer, post):
        async with post():
            pass
        await asyncio.wait_for(peer.closed.wait(), 10)


async def test_an_instance_that_sends_more_than_is_read_has_to_wait():
    big = b"%x\r\n%b\r\n" % (64 * 2**20, b"y" * (64 * 2**20))
    async with talking_to(STREAM + big + b"0\r\n\r\n") as (_, post), post() as answer:
        await asyncio.sleep(0.2)
        assert answer._connection._waiting < 2**20
        assert sum([len(chunk) async for chunk in answer.chunks()]) == 64 * 2**20


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"CLOSE", "broke off: connection closed"),
        (b"nonsense\r\n\r\n", "broke off: no HTTP"),
        (OK[:-1] + b"CLOSE", "broke off"),
        (STREAM + b"3\r\none\r\nCLOSE", "broke off"),
    ],
)
async def test_broken_answers(answer, said):
    async with talking_to(answer) as (_, post):
        with pytest.raises(UpstreamError, match=said) as raised:
            async with post() as opened:
                await opened.read()
        assert raised.value.status == 502


@pytest.mark.parametrize("answer", [b"", OK[:-1], STREAM])
async def test_an_answer_that_takes_too_long(answer):
    async with talking_to(answer, decode_s=0.1) as (_, post):
        with pytest.raises(UpstreamError, match="did not answer in time") as raised:
            async with post() as opened:
                await opened.read()
        assert raised.value.status == 504


async def test_a_refusal_in_the_middle_of_a_large_body():
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nContent-Type: text/plain\r\n\r\nhuge")
        await writer.drain()
        await over.wait()
        writer.transport.abort()

    over = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    client = InstanceClient(Timeouts())
    instance = instance_at(server.sockets[0].getsockname()[1])
    with pytest.raises(UpstreamError, match="huge") as raised:
        async with client.post(Role.DECODE, instance, "/v1", [b"z" * 2**20] * 64, {}):
            pass
    assert raised.value.status == 413
    over.set()
    await asyncio.sleep(0.05)
    client.close()
    server.close()


async def test_nobody_listens():
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(UnreachableError, match="decode instance d cannot be reached"):
        async with InstanceClient(Timeouts()).post(Role.DECODE, instance_at(port), "/v1", b"", {}):
            pass


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://a:81", b"POST /v1 HTTP/1.1\r\n", b"Host: a:81\r\n"),
        ("http://a/base/", b"POST /base/v1 HTTP/1.1\r\n", b"Host: a:80\r\n"),
        ("https://[::1]", b"POST /v1 HTTP/1.1\r\n", b"Host: [::1]:443\r\n"),
    ],
)
def test_heads_of_requests(url, line, host):
    head = Address.of(url).head("/v1", {"A": "b"}, 3)
    assert head.startswith(line)
    assert host in head
    assert head.endswith(b"Content-Length: 3\r\nA: b\r\n\r\n")


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nb", "a\r"])
def test_no_header_can_smuggle_in_another_one(value):
    with pytest.raises(ValueError, match="line break"):
        Address.of("http://a").head("/v1", {"A": value}, 0)
