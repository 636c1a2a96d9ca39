# SPDX-License-Identifier: Apache-2.0
"""vLLM's endpoint plugin: what an instance tells about itself over HTTP, and its registration at the router."""

import hmac
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from fastapi import HTTPException, Request

from vllm_epd.compat.cuts import cuts_of
from vllm_epd.compat.embeddings import embedding_row_bytes
from vllm_epd.compat.fingerprint import fingerprint_of
from vllm_epd.compat.registry import KV_CONNECTOR
from vllm_epd.compat.resumable import may_resume
from vllm_epd.connectors.agent_client import AgentClient
from vllm_epd.connectors.kv_shape import CHUNK_TOKENS
from vllm_epd.connectors.settings import EmbeddingSettings, KVSettings
from vllm_epd.errors import PeerError
from vllm_epd.roles.metrics import EMBEDDINGS, KV, publish_pool_metrics
from vllm_epd.roles.registrar import Registrar
from vllm_epd.roles.serve import ATTRIBUTE, Instance
from vllm_epd.transfer.pool import PAGE_BYTES
from vllm_epd.types import TOKEN_ENV, Fingerprint, InstanceInfo

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.engine.protocol import EngineClient

logger = logging.getLogger(__name__)


class LeaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The router wants `key` for one more consumer, as long as `model` still means the adapter at `lora`."""

    key: str
    lease: str
    rank: int = 0
    model: str | None = None
    lora: str | None = None


class ReleaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The consumers of `leases` will not come."""

    leases: list[str]
    rank: int = 0


class ExpectRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request will come for the KV cache that `rank` of `epoch` offers as `transfer`."""

    transfer: str
    epoch: str
    rank: int = 0


class ForgetRequest(msgspec.Struct, forbid_unknown_fields=True):
    """No request will come for what is offered as `transfer` any more."""

    transfer: str


class AdminPlugin:
    """`/epd/info`, `/epd/pool`, `/epd/leases` and `/epd/kv`, and a registrar where `--epd-router` is given."""

    name = "epd"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._instance: Instance | None = None
        self._registrar: Registrar | None = None
        self._state: State | None = None
        self._agents: AgentClient | None = None
        self._kv_agents: AgentClient | None = None
        self._url = ""
        self._fingerprint: Fingerprint | None = None
        self._limits: dict[str, int] = {}
        self._addresses: tuple[str, ...] = ()
        self._kv = ""
        self._kv_shards = 1
        self._kv_addresses: tuple[str, ...] = ()

    def attach_router(self, app: "FastAPI") -> None:
        """Add the routes."""
        app.add_api_route("/epd/info", self.describe, methods=["GET"])
        app.add_api_route("/epd/pool", self.pool, methods=["GET"])
        app.add_api_route("/epd/leases", self.take_lease, methods=["POST"])
        app.add_api_route("/epd/leases/release", self.release_leases, methods=["POST"])
        app.add_api_route("/epd/leases/forget", self.forget_leases, methods=["POST"])
        app.add_api_route("/epd/kv/expect", self.expect_kv, methods=["POST"])
        app.add_api_route("/epd/kv/forget", self.forget_kv, methods=["POST"])
        app.router.add_event_handler("shutdown", self.stop)

    async def init_state(self, engine_client: "EngineClient | None", state: "State", args: Namespace) -> None:
        """Learn who this instance is and start to register it; nothing without a role."""
        self._instance = getattr(args, ATTRIBUTE, None)
        if self._instance is None or engine_client is None:
            return
        config = engine_client.vllm_config
        settings = EmbeddingSettings.from_extra_config(args.ec_transfer_config.ec_connector_extra_config)
        dp_size, tp_size = config.parallel_config.data_parallel_size, config.parallel_config.tensor_parallel_size
        commands = [[settings.command_address(dp, tp) for tp in range(tp_size)] for dp in range(dp_size)]
        self._state = state
        self._url = _public_url(self._instance, args)
        self._fingerprint = fingerprint_of(config)
        self._agents = AgentClient(commands)
        self._limits = {"max_model_len": int(engine_client.model_config.max_model_len)}
        if self._instance.roles.language_model:
            self._limits["resume"] = int(may_resume(config, state.openai_serving_chat, args))
            self._limits |= engine_limits(config)
        if self._instance.roles.encode:
            item_bytes = self._limits["max_model_len"] * embedding_row_bytes(config.model_config)
            self._limits |= {
                "pool_bytes": settings.pool_bytes,
                "page_bytes": PAGE_BYTES,
                "max_item_bytes": item_bytes,
            }
            if not self._instance.roles.language_model:
                self._limits |= {f"shards_{modality}": 1 for modality in cuts_of(config.model_config)}
            self._addresses = tuple(settings.peer_address(rank) for rank in range(dp_size))
        publish_pool_metrics(EMBEDDINGS, commands, self._models()[0])
        if args.kv_transfer_config is not None:
            self._kv = self._instance.config.kv_connector
            self._connect_kv(args.kv_transfer_config, dp_size, tp_size)
        if self._instance.config.router is not None:
            self._registrar = Registrar(self._instance.config.router, _health_url(args), self.info, self._set_peers)
            self._registrar.start()

    def _connect_kv(self, config: "KVTransferConfig", dp_size: int, tp_size: int) -> None:
        """Connect to the agents that move KV caches, where they are ours."""
        if config.kv_connector == KV_CONNECTOR:
            settings = KVSettings.from_extra_config(config.kv_connector_extra_config)
            commands = [[settings.command_address(dp, tp) for tp in range(tp_size)] for dp in range(dp_size)]
            self._kv_agents, self._kv_shards = AgentClient(commands), tp_size
            self._limits["kv_chunk_tokens"] = CHUNK_TOKENS
            publish_pool_metrics(KV, commands, self._models()[0])
            if config.is_kv_producer:
                self._kv_addresses = tuple(settings.peer_address(agent) for agent in range(dp_size * tp_size))

    async def _set_peers(self, addresses: Mapping[str, Sequence[str]]) -> None:
        for agents in (self._agents, self._kv_agents):
            if agents is not None:
                await agents.set_peers(addresses)

    def info(self) -> InstanceInfo:
        """This instance as the router sees it."""
        assert self._instance is not None
        assert self._fingerprint is not None
        return InstanceInfo(
            instance_id=urlsplit(self._url).netloc,
            epoch=self._instance.epoch,
            url=self._url,
            roles=self._instance.roles,
            models=self._models(),
            fingerprint=self._fingerprint,
            limits=self._limits,
            agents=self._addresses,
            kv=self._kv,
            kv_agents=self._kv_addresses,
            kv_shards=self._kv_shards,
        )

    async def describe(self) -> dict[str, Any]:
        """The answer to `GET /epd/info`; empty without a role."""
        return {} if self._instance is None else self.info().to_mapping()

    async def pool(self) -> dict[str, Any]:
        """The answer to `GET /epd/pool`: how full the region for embeddings is; empty without a role.

        `kv` is the same for KV caches, where they travel over agents of our own. Both speak of the first rank;
        `/metrics` has them all.
        """
        if self._agents is None:
            return {}
        state = dict(msgspec.to_builtins(await self._agents.pool_state()))
        if self._kv_agents is not None:
            state["kv"] = msgspec.to_builtins(await self._kv_agents.pool_state())
        return state

    async def take_lease(self, request: Request) -> dict[str, Any]:
        """`POST /epd/leases`: `{"handle": ...}` for an embedding that is held, `{"handle": null}` otherwise."""
        agents = self._authorized(request)
        wanted = _decoded(await request.body(), LeaseRequest)
        if self._lora_path(wanted.model) != wanted.lora:
            return {"handle": None}
        try:
            handle = await agents.take_lease(wanted.rank, wanted.key, wanted.lease)
        except PeerError as error:
            raise HTTPException(503, str(error)) from error
        if handle is None:
            return {"handle": None}
        return {"handle": {**msgspec.to_builtins(handle), "epoch": self.info().epoch}}

    async def release_leases(self, request: Request) -> dict[str, Any]:
        """`POST /epd/leases/release`: nobody comes for them; unknown ones are no error."""
        agents = self._authorized(request)
        unwanted = _decoded(await request.body(), ReleaseRequest)
        try:
            await agents.withdraw(unwanted.rank, unwanted.leases)
        except PeerError as error:
            raise HTTPException(400, str(error)) from error
        return {}

    async def forget_leases(self, request: Request) -> dict[str, Any]:
        """`POST /epd/leases/forget`: nobody comes for the embeddings of an offer; an unknown one is no error."""
        agents = self._authorized(request)
        await agents.forget(_decoded(await request.body(), ForgetRequest).transfer)
        return {}

    async def expect_kv(self, request: Request) -> dict[str, Any]:
        """`POST /epd/kv/expect`: fetch a KV cache while its producer still makes it."""
        agents = self._authorized_kv(request)
        wanted = _decoded(await request.body(), ExpectRequest)
        await agents.expect(wanted.rank, wanted.transfer, wanted.epoch)
        return {}

    async def forget_kv(self, request: Request) -> dict[str, Any]:
        """`POST /epd/kv/forget`: nobody comes for a KV cache; an unknown one is no error."""
        agents = self._authorized_kv(request)
        await agents.forget(_decoded(await request.body(), ForgetRequest).transfer)
        return {}

    async def stop(self) -> None:
        """Sign off at the router."""
        if self._registrar is not None:
            await self._registrar.stop()
        for agents in (self._agents, self._kv_agents):
            if agents is not None:
                agents.close()

    def _authorized(self, request: Request) -> AgentClient:
        if self._agents is None:
            raise HTTPException(404, "this server has no role")
        token = os.environ.get(TOKEN_ENV)
        shown = request.headers.get("Authorization", "")
        if token and not hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, f"this is for the router alone; show the token of {TOKEN_ENV}")
        return self._agents

    def _authorized_kv(self, request: Request) -> AgentClient:
        self._authorized(request)
        if self._kv_agents is None:
            raise HTTPException(404, "this instance takes in no KV caches over agents of its own")
        return self._kv_agents

    def _models(self) -> tuple[str, ...]:
        served = self._served()
        return (*(path.name for path in served.base_model_paths), *served.lora_requests)

    def _lora_path(self, model: str | None) -> str | None:
        lora = self._served().lora_requests.get(model)
        return None if lora is None else str(lora.lora_path)

    def _served(self) -> Any:
        assert self._state is not None
        return self._state.openai_serving_models


def plugin() -> AdminPlugin:
    """The factory behind the entry point."""
    return AdminPlugin()


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise HTTPException(400, str(error)) from error


def engine_limits(config: "VllmConfig") -> dict[str, int]:
    """What all engines of the instance together run at once, and how many tokens their KV caches hold."""
    engines = config.parallel_config.data_parallel_size
    limits = {"max_num_seqs": engines * int(config.scheduler_config.max_num_seqs)}
    if tokens := config.cache_config.kv_cache_size_tokens:
        limits["kv_tokens"] = engines * int(tokens)
    return limits


def _public_url(instance: Instance, args: Namespace) -> str:
    advertise = instance.config.advertise
    scheme = "https" if args.ssl_certfile else "http"
    if advertise and "//" in advertise:
        return advertise.rstrip("/")
    if advertise and ":" in advertise.rsplit("]", 1)[-1]:
        return f"{scheme}://{advertise}"
    return f"{scheme}://{_bracketed(advertise or instance.host)}:{args.port}"


def _health_url(args: Namespace) -> str:
    host = args.host if args.host and args.host not in ("0.0.0.0", "::") else "127.0.0.1"
    return f"{'https' if args.ssl_certfile else 'http'}://{_bracketed(host)}:{args.port}/health"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
