# SPDX-License-Identifier: Apache-2.0
"""What an instance answers under /epd, on top of a real transfer agent."""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
import torch

pytest.importorskip("vllm")

from fastapi import FastAPI  # noqa: E402
from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402

from tests.fakes.instance import FINGERPRINT  # noqa: E402
from vllm_epd.compat.registry import KV_CONNECTOR  # noqa: E402
from vllm_epd.connectors.kv_shape import CHUNK_TOKENS
from vllm_epd.connectors.landing import Drop  # noqa: E402
from vllm_epd.connectors.link import AgentLink  # noqa: E402
from vllm_epd.connectors.settings import EmbeddingSettings, KVSettings  # noqa: E402
from vllm_epd.roles import admin, metrics  # noqa: E402
from vllm_epd.roles.serve import ATTRIBUTE, Instance  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402
from vllm_epd.transfer.agent import TransferAgent  # noqa: E402
from vllm_epd.transfer.items import Claim, lease_pin  # noqa: E402
from vllm_epd.types import TOKEN_ENV, RoleSet, kv_epoch  # noqa: E402

LEASES = "/epd/leases"
RELEASE = "/epd/leases/release"
FORGET_LEASES = "/epd/leases/forget"
EXPECT = "/epd/kv/expect"
FORGET = "/epd/kv/forget"
TENSOR = torch.arange(64, dtype=torch.float32).view(8, 8)


@dataclass(frozen=True, slots=True)
class Served:
    """An instance's routes, its metrics, and the agent behind them."""

    client: httpx.AsyncClient
    agent: TransferAgent
    numbers: CollectorRegistry
    plugin: admin.AdminPlugin

    async def pinned(self) -> int:
        return int((await self.client.get("/epd/pool")).json()["pinned"])

    async def until_unpinned(self) -> None:
        """The agent is told to let go over one connection and asked over another, which may overtake it."""
        async with asyncio.timeout(5):
            while await self.pinned():
                await asyncio.sleep(0.01)


@pytest.fixture
def settings() -> EmbeddingSettings:
    return EmbeddingSettings(uuid4().hex, "127.0.0.1", 0, 2**20, 60.0, 5.0, "shm", "UCX", True)


@pytest.fixture
def agent(settings: EmbeddingSettings) -> Iterator[TransferAgent]:
    made = TransferAgent(settings.agent_config(FINGERPRINT, 0, 0, torch.device("cpu"), offers=False))
    made.store.claim([Claim("held", TENSOR.nbytes, lease_pin("first"), 60.0)])
    made.store.put("held", TENSOR)
    made.store.end_lease("first")
    yield made
    made.close()


@pytest.fixture
def role() -> str:
    return "encode"


def kv_config(roles: RoleSet, like: EmbeddingSettings) -> Any:
    """vLLM's configuration of our own KV connector, as `like` but with an epoch of its own."""
    if roles.prefill == roles.decode:
        return None
    shared = {each.name: getattr(like, each.name) for each in fields(KVSettings)}
    settings = KVSettings(**shared | {"epoch": kv_epoch(like.epoch), "port": like.port + 1})
    return SimpleNamespace(
        kv_connector=KV_CONNECTOR,
        kv_connector_extra_config=settings.to_extra_config(),
        is_kv_producer=roles.prefill,
    )


@pytest.fixture
def tp_size() -> int:
    return 1


@pytest.fixture
async def served(
    role: str, tp_size: int, settings: EmbeddingSettings, agent: TransferAgent, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    numbers = CollectorRegistry()
    monkeypatch.setattr(metrics, "REGISTRY", numbers)
    monkeypatch.setattr(admin, "fingerprint_of", lambda config: FINGERPRINT)
    monkeypatch.setattr(admin, "embedding_row_bytes", lambda config: 32)
    monkeypatch.setattr(admin, "cuts_of", lambda config: {"video": None})
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    monkeypatch.setattr(admin, "may_resume", lambda config, chat, args: True)
    given: Any = SimpleNamespace(router=None, advertise=None, kv_connector="epd")
    instance = Instance(given, RoleSet.parse(role), settings.epoch, "h", 1, 2)
    args = Namespace(
        ssl_certfile=None,
        host="127.0.0.1",
        port=1,
        kv_transfer_config=kv_config(RoleSet.parse(role), settings),
        ec_transfer_config=SimpleNamespace(ec_connector_extra_config=settings.to_extra_config()),
        **{ATTRIBUTE: instance},
    )
    parallel = SimpleNamespace(data_parallel_size=1, tensor_parallel_size=tp_size)
    model = SimpleNamespace(max_model_len=100)
    engine = SimpleNamespace(
        vllm_config=SimpleNamespace(
            parallel_config=parallel,
            model_config=model,
            scheduler_config=SimpleNamespace(max_num_seqs=8),
            cache_config=SimpleNamespace(kv_cache_size_tokens=1000),
        ),
        model_config=model,
    )
    models = SimpleNamespace(
        base_model_paths=[SimpleNamespace(name="base")],
        lora_requests={"tuned": SimpleNamespace(lora_path="/adapters/tuned")},
    )
    plugin, app = admin.AdminPlugin(), FastAPI()
    plugin.attach_router(app)
    await plugin.init_state(engine, SimpleNamespace(openai_serving_models=models, openai_serving_chat=None), args)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://instance") as client:
        yield Served(client, agent, numbers, plugin)
    await plugin.stop()


async def test_an_encoder_says_how_much_it_can_hold_and_where_it_offers(served: Served) -> None:
    info = (await served.client.get("/epd/info")).json()
    sizes = {"max_model_len": 100, "pool_bytes": 2**20, "page_bytes": 65536, "max_item_bytes": 3200}
    assert info["limits"] == {**sizes, "shards_video": 1}
    assert len(info["agents"]) == 1


async def test_a_lease_on_what_is_held_keeps_it_until_it_is_given_back(
    served: Served, settings: EmbeddingSettings
) -> None:
    answer = await served.client.post(LEASES, json={"key": "held", "lease": "mine", "model": "base"})
    assert answer.json() == {
        "handle": {
            "version": wire.WIRE_VERSION,
            "key": "held",
            "lease": "mine",
            "epoch": settings.epoch,
            "rank": 0,
            "nbytes": TENSOR.nbytes,
        }
    }
    assert await served.pinned() == 1
    assert (await served.client.post(RELEASE, json={"leases": ["mine", "unknown"]})).json() == {}
    await served.until_unpinned()


async def test_what_is_offered_under_a_name_is_forgotten_by_it(served: Served, settings: EmbeddingSettings) -> None:
    link = AgentLink([settings.command_address(0, 0)])
    link.reserve([wire.Wanted(0, "held", "mine", TENSOR.nbytes), wire.Wanted(1, "more", "other", 64)], "t")
    (reserved,) = link.poll(5000)
    assert isinstance(reserved, wire.Reserved)
    link.drop(Drop(0, 0))
    assert await served.pinned() == 2
    for name in ("unknown", "t"):
        assert (await served.client.post(FORGET_LEASES, json={"transfer": name})).json() == {}
    link.close()
    await served.until_unpinned()


@pytest.mark.parametrize(
    "body",
    [
        {"key": "gone", "lease": "mine"},
        {"key": "held", "lease": "mine", "model": "tuned"},
        {"key": "held", "lease": "mine", "model": "tuned", "lora": "/adapters/older"},
        {"key": "held", "lease": "mine", "model": "base", "lora": "/adapters/tuned"},
    ],
    ids=["not held", "made without the adapter", "made with another one", "made with one"],
)
async def test_what_is_not_held_under_these_conditions_is_not_leased(served: Served, body: dict[str, str]) -> None:
    answer = await served.client.post(LEASES, json=body)
    assert (answer.status_code, answer.json()) == (200, {"handle": None})
    assert await served.pinned() == 0


async def test_the_adapter_it_was_made_with_may_use_it(served: Served) -> None:
    body = {"key": "held", "lease": "mine", "model": "tuned", "lora": "/adapters/tuned"}
    assert (await served.client.post(LEASES, json=body)).json()["handle"] is not None


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (LEASES, {}, 400),
        (LEASES, {"key": 1, "lease": "a"}, 400),
        (LEASES, {"key": "held", "lease": "a", "more": 1}, 400),
        (LEASES, {"key": "held", "lease": "a", "rank": 3}, 503),
        (RELEASE, {"leases": "a"}, 400),
        (RELEASE, {"leases": [], "rank": -1}, 400),
        (FORGET_LEASES, {}, 400),
    ],
)
async def test_bad_bodies_are_refused(served: Served, path: str, body: dict[str, object], status: int) -> None:
    assert (await served.client.post(path, json=body)).status_code == status


async def test_leases_are_for_those_who_know_the_token(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_ENV, "secret")
    body = {"key": "held", "lease": "mine"}
    assert (await served.client.post(LEASES, json=body)).status_code == 401
    assert (await served.client.post(RELEASE, json={"leases": ["x"]})).status_code == 401
    assert (await served.client.post(FORGET_LEASES, json={"transfer": "x"})).status_code == 401
    shown = await served.client.post(LEASES, json=body, headers={"Authorization": "Bearer secret"})
    assert shown.json()["handle"] is not None


async def test_the_pool_is_among_the_metrics(served: Served) -> None:
    await served.client.post(LEASES, json={"key": "held", "lease": "mine"})
    text = generate_latest(served.numbers).decode()
    expected = {
        "hits_total": 1,
        "encoded_total": 1,
        "raw_bytes_total": TENSOR.nbytes,
        "stored_bytes_total": TENSOR.nbytes,
        "codec_active": 0,
        "pinned": 1,
    }
    for name, value in expected.items():
        labels = 'engine="0",model_name="base",rank="0"'
        assert f"vllm_epd:embedding_pool_{name}{{{labels}}} {float(value)}" in text


class KvAgents:
    """Notes what it is told, in place of the way to the KV agents of an instance."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    async def expect(self, rank: int, transfer: str, epoch: str) -> None:
        self.told.append(("expect", rank, transfer, epoch))

    async def forget(self, transfer: str) -> None:
        self.told.append(("forget", transfer))

    def close(self) -> None:
        pass


@pytest.fixture
def kv_agents(served: Served, monkeypatch: pytest.MonkeyPatch) -> KvAgents:
    agents = KvAgents()
    monkeypatch.setattr(served.plugin, "_kv_agents", agents)
    return agents


@pytest.mark.parametrize(
    ("role", "kv", "resume"),
    [("prefill", "epd", 1), ("encode+decode", "epd", 1), ("prefill+decode", "", 1), ("encode", "", None)],
)
async def test_an_instance_that_hands_kv_caches_over_says_how_and_where(
    served: Served, role: str, kv: str, resume: int | None
) -> None:
    info = (await served.client.get("/epd/info")).json()
    assert (info["kv"], info["limits"].get("resume")) == (kv, resume)
    assert info["limits"].get("kv_chunk_tokens") == (CHUNK_TOKENS if kv else None)
    assert bool(info["kv_agents"]) == (role == "prefill")
    assert info["kv_shards"] == 1


@pytest.mark.parametrize(("role", "agents"), [("prefill", 2), ("decode", 0)])
@pytest.mark.parametrize("tp_size", [2])
async def test_every_tensor_parallel_rank_serves_its_part_at_an_address_of_its_own(
    served: Served, role: str, agents: int
) -> None:
    info = (await served.client.get("/epd/info")).json()
    assert (info["kv_shards"], len(set(info["kv_agents"]))) == (2, agents)


@pytest.mark.parametrize("tp_size", [2])
async def test_the_metrics_have_a_sample_for_each_rank_that_answers(
    served: Served, settings: EmbeddingSettings
) -> None:
    second = TransferAgent(settings.agent_config(FINGERPRINT, 0, 1, torch.device("cpu"), offers=False))
    try:
        text = generate_latest(served.numbers).decode()
    finally:
        second.close()
    samples = [line for line in text.splitlines() if line.startswith("vllm_epd:embedding_pool_items{")]
    assert sorted(samples) == [
        'vllm_epd:embedding_pool_items{engine="0",model_name="base",rank="0"} 1.0',
        'vllm_epd:embedding_pool_items{engine="0",model_name="base",rank="1"} 0.0',
    ]


@pytest.mark.parametrize("role", ["prefill", "prefill+decode", "encode+decode"])
async def test_an_instance_with_a_language_model_says_how_much_it_takes_at_once(served: Served, role: str) -> None:
    limits = (await served.client.get("/epd/info")).json()["limits"]
    assert (limits["max_num_seqs"], limits["kv_tokens"]) == (8, 1000)


@pytest.mark.parametrize(
    ("engines", "tokens", "limits"),
    [(1, None, {"max_num_seqs": 8}), (3, 500, {"max_num_seqs": 24, "kv_tokens": 1500})],
)
def test_the_bounds_are_those_of_all_engines(engines: int, tokens: int | None, limits: dict[str, int]) -> None:
    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=engines),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        cache_config=SimpleNamespace(kv_cache_size_tokens=tokens),
    )
    assert admin.engine_limits(config) == limits


async def test_the_agents_are_told_which_kv_caches_come(served: Served, kv_agents: KvAgents) -> None:
    body = {"transfer": "t", "epoch": "e-kv", "rank": 0}
    assert (await served.client.post(EXPECT, json=body)).json() == {}
    assert (await served.client.post(FORGET, json={"transfer": "t"})).json() == {}
    assert kv_agents.told == [("expect", 0, "t", "e-kv"), ("forget", "t")]


@pytest.mark.parametrize(
    ("path", "body"),
    [(EXPECT, {}), (EXPECT, {"transfer": "t"}), (EXPECT, {"transfer": 1, "epoch": "e"}), (FORGET, {"rank": 0})],
)
async def test_bad_bodies_about_kv_caches_are_refused(
    served: Served, kv_agents: KvAgents, path: str, body: dict[str, object]
) -> None:
    assert (await served.client.post(path, json=body)).status_code == 400
    assert kv_agents.told == []


@pytest.mark.parametrize(("path", "body"), [(EXPECT, {"transfer": "t", "epoch": "e"}), (FORGET, {"transfer": "t"})])
async def test_kv_caches_are_for_the_router_and_for_those_who_take_them_in(
    served: Served, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, str]
) -> None:
    assert (await served.client.post(path, json=body)).status_code == 404
    monkeypatch.setenv(TOKEN_ENV, "secret")
    assert (await served.client.post(path, json=body)).status_code == 401
