# SPDX-License-Identifier: Apache-2.0
"""The front door, spoken to in bytes: what it takes for a request, what it answers, and when it hangs up."""

import asyncio
import gc
import json
import socket
import weakref
from contextlib import asynccontextmanager

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.router.conftest import soon
from vllm_epd.errors import RequestError
from vllm_epd.router.failures import error_response
from vllm_epd.router.web import connection, server
from vllm_epd.router.web.messages import Response
from vllm_epd.router.web.server import HttpServer

MOST_BODY = 2**20


class Service:
    """Tells what it was asked, when it may."""

    def __init__(self):
        self.seen = []
        self.cancelled = 0
        self.status = 200
        self.reads = True
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, request):
        self.seen.append(request)
        try:
            await self.gate.wait()
            body = await request.body.read() if self.reads else b""
        except RequestError as error:
            return error_response(error)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if request.path == "/bug":
            raise ZeroDivisionError
        if request.path == "/stream":
            stream = request.begin("text/plain", {"X-More": "yes"})
            for _ in range(int(request.query.get("times", "1"))):
                await stream.write(body or b"some")
            await stream.end()
            return stream
        if request.path == "/nothing":
            return Response(status=204)
        told = {"method": request.method, "target": request.target, "body": body.decode("latin-1")}
        return Response(json.dumps(told).encode(), self.status)


class Client:
    """A connection, in bytes."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def send(self, data):
        self.writer.write(data)

    async def head(self):
        """Status and headers of the next answer, names in lower case."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), headers

    async def answer(self):
        """Status, headers and body of the next answer."""
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, await self.chunks()
        return status, headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def chunks(self):
        found = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            found += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"
        return found

    async def told(self):
        """What the service was asked, by its answer of status 200."""
        status, _, body = await self.answer()
        assert status == 200
        return json.loads(body)

    async def is_closed(self):
        """Wait until the server has hung up, after all that was read."""
        assert await asyncio.wait_for(self.reader.read(), 10) == b""

    async def stays(self):
        """Another request is answered."""
        self.send(b"GET /again HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await self.told())["target"] == "/again"


@asynccontextmanager
async def listening(grace_s=0.1):
    service = Service()
    listener = HttpServer(service.serve, error_response, MOST_BODY)
    port = await listener.listen("127.0.0.1", 0)
    clients = []

    async def connect(**options):
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port, **options)))
        return clients[-1]

    connect.service, connect.server = service, listener
    try:
        yield connect
    finally:
        await listener.close(grace_s)
        for each in clients:
            each.writer.close()


@pytest.fixture
async def connect():
    async with listening() as found:
        yield found


@pytest.fixture
async def client(connect):
    return await connect()


POST = b"POST /a?b=c HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"PUT /d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
)
GET = b"GET /e HTTP/1.1\r\nHost: h\r\n\r\n"
TOLD = [
    {"method": "POST", "target": "/a?b=c", "body": "hello"},
    {"method": "PUT", "target": "/d", "body": "abcde"},
    {"method": "GET", "target": "/e", "body": ""},
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(range(3)), min_size=1, max_size=8), st.lists(st.integers(1, 400), max_size=12))
def test_however_the_bytes_are_cut_requests_are_answered_in_order(which, cuts):
    data = b"".join((POST, CHUNKED, GET)[each] for each in which)

    async def ask():
        async with listening() as connect:
            client = await connect()
            at = 0
            for cut in cuts:
                client.send(data[at : at + cut])
                at += cut
                await asyncio.sleep(0)
            client.send(data[at:])
            return [await asyncio.wait_for(client.told(), 10) for _ in which]

    assert uvloop.run(ask()) == [TOLD[each] for each in which]


async def test_byte_by_byte(client):
    for at in range(len(CHUNKED)):
        client.send(CHUNKED[at : at + 1])
        await client.writer.drain()
        await asyncio.sleep(0.001)
    assert await client.told() == TOLD[1]


async def test_names_of_headers_in_any_case_and_the_first_of_several(connect, client):
    client.send(b"GET / HTTP/1.1\r\nhost: h\r\nX-One: 1\r\nx-one: 2\r\nX-Odd: \xff\r\n\r\n")
    await client.told()
    (seen,) = connect.service.seen
    assert (seen.headers["x-ONE"], seen.headers["X-Odd"].encode("utf-8", "surrogateescape")) == ("1", b"\xff")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a/b%2Fc?x=1&x=2&y=%20&z", "/a/b%2Fc", {"x": "2", "y": " ", "z": ""}),
        ("http://host:1/a?b=/c", "/a", {"b": "/c"}),
        ("http://[/a", "/a", {}),
        ("//[x", "//[x", {}),
        ("*", "/", {}),
    ],
)
async def test_targets(connect, client, target, path, query):
    client.send(f"OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    await client.told()
    (seen,) = connect.service.seen
    assert (seen.path, seen.query) == (path, query)


async def test_an_answer_says_what_it_is_and_when(client):
    client.send(GET)
    status, headers, body = await client.answer()
    assert (status, headers["content-type"], int(headers["content-length"])) == (200, "application/json", len(body))
    assert headers["date"].endswith("gmt")
    await client.stays()


async def test_a_stream_goes_out_in_chunks(client):
    client.send(b"POST /stream?times=3 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
    status, headers, body = await client.answer()
    assert (status, headers["transfer-encoding"], headers["content-type"]) == (200, "chunked", "text/plain")
    assert (headers["x-more"], body) == ("yes", b"abcabcabc")
    await client.stays()


async def test_old_clients_get_a_stream_up_to_the_end_of_the_connection(client):
    client.send(b"POST /stream?times=2 HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
    status, headers = await client.head()
    assert (status, "transfer-encoding" in headers, headers["connection"]) == (200, False, "close")
    assert await client.reader.read() == b"abcabc"


async def test_head_has_the_length_and_no_body(client):
    client.send(b"HEAD /e HTTP/1.1\r\nHost: h\r\n\r\n")
    _, headers = await client.head()
    assert int(headers["content-length"]) > 10
    await client.stays()


async def test_no_content(client):
    client.send(b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n")
    status, headers, _ = await client.answer()
    assert (status, {"content-length", "content-type"} & set(headers)) == (204, set())
    await client.stays()


async def test_a_client_that_wants_to_hang_up_is_let(client):
    client.send(b"GET /e HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    _, headers, _ = await client.answer()
    assert headers["connection"] == "close"
    await client.is_closed()


async def test_a_client_that_asks_first_is_told_to_go_on(connect, client):
    head = b"POST /f HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n"
    client.send(head)
    assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    assert (await client.told())["body"] == "hello"
    connect.service.gate.clear()
    client.send(GET + head)  # not before the answer to the other one
    await soon(lambda: len(connect.service.seen) == 2)
    connect.service.gate.set()
    assert (await client.told())["target"] == "/e"
    assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    assert (await client.told())["body"] == "hello"


@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("which", range(3))
async def test_another_protocol_is_passed_over(connect, client, which, times):
    proposal = b"Host: h\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nX-Odd: \xff\r\n"
    client.send((POST, CHUNKED, GET)[which].replace(b"Host: h\r\n", proposal) * times + POST)
    for _ in range(times):
        assert await client.told() == TOLD[which]
    assert (await client.told())["body"] == "hello"
    assert connect.service.seen[0].headers["X-Odd"].encode("utf-8", "surrogateescape") == b"\xff"


async def test_a_tunnel_is_not_made(client):
    client.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.told())["method"] == "CONNECT"
    await client.is_closed()


MALFORMED = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "another version": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "a length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length below nothing": b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
    "a header over two lines": b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
    "lines that end otherwise": b"GET / HTTP/1.1\nA: b\n\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_no_request_is_refused(connect, client, data):
    client.send(data)
    status, headers, body = await client.answer()
    assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (400, "close", 400)
    await client.is_closed()
    assert connect.service.seen == []
    await (await connect()).stays()


async def test_what_is_no_request_does_not_harm_the_one_before_it(connect, client):
    connect.service.gate.clear()
    client.send(POST + MALFORMED["no HTTP"])
    await soon(lambda: connect.service.seen)
    connect.service.gate.set()
    assert (await client.told())["body"] == "hello"
    await client.is_closed()


@pytest.mark.parametrize("reads", [True, False])
async def test_a_body_that_goes_wrong_midway(connect, client, reads):
    connect.service.reads = reads
    client.send(b"POST /d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await soon(lambda: connect.service.seen)
    client.send(b"z\r\n")
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (400 if reads else 200, "close")
    await client.is_closed()
    await (await connect()).stays()


ENDLESS = {"head": (b"GET / HTTP/1.1\r\n", 431), "trailer": (CHUNKED.partition(b"Trailer")[0], 400)}


@pytest.mark.parametrize(("begins", "expected"), ENDLESS.values(), ids=ENDLESS.keys())
async def test_headers_without_end_are_refused(client, begins, expected):
    client.send(begins)
    for number in range(2 * connection.MOST_HEAD // 2**10):
        client.send(f"X-{number}: {'x' * 2**10}\r\n".encode())
        await asyncio.sleep(0)
    status, _, body = await client.answer()
    assert (status, json.loads(body)["error"]["code"]) == (expected, expected)


async def test_a_body_that_is_too_long_by_its_length_is_refused_before_it_comes(client):
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (MOST_BODY + 1))
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (413, "close")


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_client_that_sends_too_much_can_finish_and_gets_the_answer(client, chunked):
    nbytes = 8 * MOST_BODY
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % nbytes
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n")
    for _ in range(nbytes // 2**16):
        client.send(b"10000\r\n%b\r\n" % bytes(2**16) if chunked else bytes(2**16))
        await asyncio.wait_for(client.writer.drain(), 10)
    client.send(b"0\r\n\r\n" if chunked else b"")
    assert (await client.head())[0] == 413


async def test_an_answer_before_the_body_is_read_ends_the_connection_after_it(connect, client):
    connect.service.reads = False
    client.send(b"POST /d HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc")
    _, headers, _ = await client.answer()
    assert headers["connection"] == "close"
    client.send(b"defghi" + GET)
    await client.is_closed()
    assert len(connect.service.seen) == 1


async def test_a_client_that_goes_away_cancels_what_it_asked_for(connect, client):
    connect.service.gate.clear()
    client.send(POST)
    await soon(lambda: connect.service.seen)
    client.writer.transport.abort()
    await soon(lambda: connect.service.cancelled)


async def test_a_client_that_goes_away_in_its_body_cancels_too(connect, client):
    client.send(POST[:-2])
    await soon(lambda: connect.service.seen)
    client.writer.transport.abort()
    await soon(lambda: connect.service.cancelled)


async def test_a_bug_ends_its_connection_alone_and_is_told(connect, client, caplog):
    client.send(b"GET /bug HTTP/1.1\r\nHost: h\r\n\r\n")
    await client.is_closed()
    assert "ZeroDivisionError" in caplog.text
    await (await connect()).stays()


async def test_a_body_that_nobody_reads_stops_its_sender(connect, client):
    connect.service.gate.clear()
    client.send(b"POST /d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % MOST_BODY)
    (task,) = [asyncio.create_task(_send_all(client, bytes(MOST_BODY)))]
    await soon(lambda: connect.service.seen)
    await asyncio.sleep(0.1)
    waiting = sum(map(len, connect.service.seen[0].body._chunks))
    assert waiting < MOST_BODY * 3 // 4
    connect.service.gate.set()
    await task
    assert len((await client.told())["body"]) == MOST_BODY
    await client.stays()


@pytest.mark.parametrize("nbytes", [2**18, 2**18 + 1, 300_000, 2**19])
async def test_a_connection_goes_on_after_a_body_that_was_whole_before_it_was_read(connect, client, nbytes):
    connect.service.gate.clear()
    client.send(b"POST /d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % nbytes)
    sent = asyncio.create_task(_send_all(client, bytes(nbytes)))
    await soon(lambda: connect.service.seen)
    await asyncio.sleep(0.05)
    connect.service.gate.set()
    await sent
    assert len((await client.told())["body"]) == nbytes
    await asyncio.wait_for(client.stays(), 10)


async def _send_all(client, data):
    client.send(data)
    await client.writer.drain()


async def test_a_stream_waits_for_a_client_that_does_not_read(connect):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    port = connect.server._listener.sockets[0].getsockname()[1]
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**14)
    client = Client(reader, writer)
    body = b"x" * 2**18
    client.send(b"POST /stream?times=64 HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await soon(lambda: connect.service.seen)
    await asyncio.sleep(0.2)
    (served,) = connect.server._connections
    assert served.task is not None
    assert served._transport.get_write_buffer_size() < 2**20
    _, headers = await client.head()
    assert headers["transfer-encoding"] == "chunked"
    assert len(await client.chunks()) == 64 * len(body)
    writer.close()


async def test_many_requests_at_once_are_answered_in_order_and_not_all_read_ahead(connect, client):
    connect.service.gate.clear()
    asked = [b"GET /%d HTTP/1.1\r\nHost: h\r\nX-Long: %b\r\n\r\n" % (number, b"x" * 30_000) for number in range(200)]
    sent = asyncio.create_task(_send_all(client, b"".join(asked)))
    await soon(lambda: connect.service.seen)
    await asyncio.sleep(0.1)
    (served,) = connect.server._connections
    assert len(served._waiting) < 100
    connect.service.gate.set()
    assert [(await client.told())["target"] for _ in asked] == [f"/{number}" for number in range(200)]
    await sent


async def test_of_very_many_requests_at_once_the_last_are_not_answered(connect, client):
    connect.service.gate.clear()
    client.send(b"GET /e HTTP/1.1\r\n\r\n" * 5000)
    await soon(lambda: connect.service.seen)
    await asyncio.sleep(0.1)
    connect.service.gate.set()
    closing = []
    while not closing or not closing[-1]:
        status, headers, _ = await client.answer()
        assert status == 200
        closing.append(headers.get("connection") == "close")
    assert len(closing) == 1 + connection.MOST_WAITING
    await client.is_closed()


async def test_small_chunks_take_no_more_room_than_their_bytes(connect, client):
    nbytes = MOST_BODY // 2
    connect.service.gate.clear()
    head = b"POST /d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    asked = asyncio.create_task(_send_all(client, head + b"1\r\nx\r\n" * nbytes + b"0\r\n\r\n"))
    await soon(lambda: connect.service.seen)
    kept = []
    async for chunk in connect.service.seen[0].body.chunks():
        kept.append(chunk)
    assert sum(map(len, kept)) == nbytes
    assert len(kept) < 1000
    await asked


LEFT = {
    "while it waits": POST,
    "in its body": POST[:-2],
    "after a broken body": CHUNKED[:-30] + b"z\r\n",
    "with others behind it": POST + POST + POST[:-2],
}


@pytest.mark.parametrize("data", LEFT.values(), ids=LEFT.keys())
@pytest.mark.parametrize("fails", [True, False])
async def test_nothing_is_left_of_a_client_that_went_away(connect, client, data, fails):
    connect.service.gate.clear()
    client.send(data)
    await soon(lambda: connect.service.seen)
    await asyncio.sleep(0.02)
    gc.collect()
    gc.disable()
    try:
        left = [weakref.ref(each) for each in [*connect.service.seen, *connect.server._connections]]
        connect.service.seen.clear()
        if fails:
            connect.service.gate.set()
            await asyncio.sleep(0.02)
        client.writer.transport.abort()
        await soon(lambda: not connect.server._connections)
        await asyncio.sleep(0.02)
        connect.service.seen.clear()
        assert [each() for each in left if each() is not None] == []
    finally:
        gc.enable()


async def test_an_odd_status_is_passed_on(connect, client):
    connect.service.status = 529
    client.send(GET)
    assert (await client.answer())[0] == 529


PATIENCE = {
    "idle": (b"", 75),
    "after an answer": (GET, 75),
    "a head that does not end": (b"GET / HTTP/1.1\r\nA: b\r\n", 60),
    "a body that nobody wants": (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab", 10),
}


@pytest.mark.parametrize(("data", "patience_s"), PATIENCE.values(), ids=PATIENCE.keys())
async def test_a_connection_that_does_nothing_is_closed(connect, client, data, patience_s):
    connect.service.reads = False
    client.send(data)
    await soon(lambda: connect.server._connections)
    await asyncio.sleep(0.05)
    (served,) = connect.server._connections
    now = asyncio.get_running_loop().time()
    served.expire(now + patience_s - 1)
    await asyncio.sleep(0.02)
    assert connect.server._connections
    served.expire(now + patience_s + 1)
    await soon(lambda: not connect.server._connections)


async def test_what_is_being_served_has_its_time_and_a_body_that_stops_has_not(connect, client):
    connect.service.gate.clear()
    client.send(POST)
    await soon(lambda: connect.service.seen)
    (served,) = connect.server._connections
    served.expire(asyncio.get_running_loop().time() + 10_000)
    stopped = await connect()
    stopped.send(POST[:-2])
    await soon(lambda: len(connect.service.seen) == 2)
    (other,) = connect.server._connections - {served}
    other.expire(asyncio.get_running_loop().time() + 74)
    await asyncio.sleep(0.02)
    assert other in connect.server._connections
    other.expire(asyncio.get_running_loop().time() + 76)
    await soon(lambda: other not in connect.server._connections)
    connect.service.gate.set()
    assert (await client.told())["body"] == "hello"


async def test_a_server_that_leaves_lets_running_requests_finish_and_takes_no_new_ones():
    async with listening() as connect:
        idle, client = await connect(), await connect()
        await idle.stays()
        connect.service.gate.clear()
        client.send(POST + GET)
        await soon(lambda: len(connect.service.seen) == 2)
        leaving = asyncio.create_task(connect.server.close(10.0))
        await idle.is_closed()
        with pytest.raises(OSError, match="refused|failed"):
            await connect()
        connect.service.gate.set()
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        await client.is_closed()
        await asyncio.wait_for(leaving, 10)


async def test_a_server_that_leaves_does_not_wait_longer_for_who_does_not_hang_up(monkeypatch):
    monkeypatch.setattr(connection, "_LINGER_S", 0.1)
    monkeypatch.setattr(server, "_SWEEP_S", 0.1)
    async with listening() as connect:
        client = await connect()
        connect.service.reads = False
        connect.service.gate.clear()
        client.send(POST[:-2])
        await soon(lambda: connect.service.seen)
        leaving = asyncio.create_task(connect.server.close(20.0))
        connect.service.gate.set()
        await asyncio.wait_for(leaving, 10)


async def test_who_comes_while_a_server_leaves_is_sent_away(connect):
    busy = await connect()
    connect.service.gate.clear()
    busy.send(POST)
    await soon(lambda: connect.service.seen)
    port = connect.server._listener.sockets[0].getsockname()[1]
    late = asyncio.create_task(asyncio.open_connection("127.0.0.1", port))
    await asyncio.sleep(0)
    leaving = asyncio.create_task(connect.server.close(10.0))
    try:
        reader, writer = await late
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    except ConnectionError:
        pass
    connect.service.gate.set()
    await asyncio.wait_for(leaving, 5)
    assert connect.server._connections == set()


async def test_a_server_that_leaves_cancels_what_takes_too_long():
    async with listening() as connect:
        client = await connect()
        connect.service.gate.clear()
        client.send(POST)
        await soon(lambda: connect.service.seen)
        await asyncio.wait_for(connect.server.close(0.05), 10)
        assert connect.service.cancelled == 1
