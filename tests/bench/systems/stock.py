# SPDX-License-Identifier: Apache-2.0
"""Encode, prefill and decode as three stock vLLM servers, to which a client takes each request in turn."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Any

import aiohttp

from tests.bench.cases import ChatRequest
from tests.bench.client import STREAMED, Answer, ask, open_session, stream
from tests.bench.processes import HOST, STOCK, Place, running, serve_command, until_ready
from vllm_epd.launch.ports import free_ports
from vllm_epd.launch.probe import is_healthy

ONE_TOKEN = {"max_tokens": 1, "stream": False}
KEEP_KV = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@dataclass(frozen=True, slots=True)
class _Running:
    session: aiohttp.ClientSession
    urls: Mapping[str, str]
    spent: Counter[str] = field(default_factory=Counter)

    async def send(self, request: ChatRequest) -> Answer:
        """Every server gets the whole request, encoded before the clock starts; text alone skips E."""
        encode = request.body(**ONE_TOKEN)
        prefill = request.body(**ONE_TOKEN, kv_transfer_params=KEEP_KV)
        start = perf_counter()
        if request.has_media:
            await ask(self.session, self.urls["E"], encode)
        encoded = perf_counter()
        kv = (await ask(self.session, self.urls["P"], prefill))["kv_transfer_params"]
        prefilled = perf_counter()
        decode = request.body(**STREAMED, kv_transfer_params=kv)
        answer = await stream(self.session, self.urls["D"], decode, since=start)
        decoded = start + answer.total_s
        self.spent.update({"E": encoded - start, "P": prefilled - encoded, "D": decoded - prefilled})
        return answer

    async def stage_seconds(self) -> Mapping[str, float]:
        return dict(self.spent)


@dataclass(frozen=True, slots=True)
class Stock:
    """vLLM's own example connector for embeddings, and NIXL for the KV cache."""

    name: str = "stock"
    arguments: tuple[str, ...] = ()
    nixl: Mapping[str, Any] = field(default_factory=dict)

    @asynccontextmanager
    async def start(self, place: Place) -> AsyncIterator[_Running]:
        ports = dict(zip("EPD", free_ports(HOST, 3, Random()), strict=True))
        urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(open_session())
            children = []
            for (name, port), side_port in zip(ports.items(), free_ports(HOST, 3, Random()), strict=True):
                command = serve_command(place, port, *self._transfer_arguments(name, place), *self.arguments)
                environment = {
                    **STOCK,
                    "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST,
                    "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port),
                }
                log = place.logs / f"{self.name}-{name}.log"
                children.append(await stack.enter_async_context(running(command, log, environment)))

            async def all_healthy() -> bool:
                return all([await is_healthy(session, url) for url in urls.values()])

            await until_ready(children, all_healthy)
            yield _Running(session, urls)

    def _transfer_arguments(self, name: str, place: Place) -> list[str]:
        if name == "E":
            return [*_embeddings("ec_producer", place)]
        if name == "P":
            return [*_embeddings("ec_consumer", place), *_kv("kv_producer", self.nixl)]
        return [*_kv("kv_consumer", self.nixl)]


def _embeddings(role: str, place: Place) -> tuple[str, str]:
    extra = {"shared_storage_path": str(place.scratch)}
    return _flag(
        "--ec-transfer-config",
        {"ec_connector": "ECExampleConnector", "ec_role": role, "ec_connector_extra_config": extra},
    )


def _kv(role: str, extra: Mapping[str, Any]) -> tuple[str, str]:
    settings = {"kv_connector": "NixlConnector", "kv_role": role, "kv_buffer_device": "cpu"}
    return _flag("--kv-transfer-config", {**settings, "kv_connector_extra_config": dict(extra)})


def _flag(name: str, value: dict[str, Any]) -> tuple[str, str]:
    return name, json.dumps(value)
