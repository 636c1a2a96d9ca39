# SPDX-License-Identifier: Apache-2.0
"""vLLM's endpoint plugin: what an instance tells about itself over HTTP, and its registration at the router."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from vllm_epd.compat.fingerprint import fingerprint_of
from vllm_epd.connectors.pool_state import ask_pool_state
from vllm_epd.connectors.settings import EmbeddingSettings
from vllm_epd.roles.registrar import Registrar
from vllm_epd.roles.serve import ATTRIBUTE, Instance
from vllm_epd.types import Fingerprint, InstanceInfo

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient


class AdminPlugin:
    """`GET /epd/info` and `/epd/pool`, and a registrar where `--epd-router` is given."""

    name = "epd"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._instance: Instance | None = None
        self._registrar: Registrar | None = None
        self._state: State | None = None
        self._url = ""
        self._fingerprint: Fingerprint | None = None
        self._limits: dict[str, int] = {}
        self._command_address: str | None = None

    def attach_router(self, app: "FastAPI") -> None:
        """Add the route."""
        app.add_api_route("/epd/info", self.describe, methods=["GET"])
        app.add_api_route("/epd/pool", self.pool, methods=["GET"])
        app.router.add_event_handler("shutdown", self.stop)

    async def init_state(self, engine_client: "EngineClient | None", state: "State", args: Namespace) -> None:
        """Learn who this instance is and start to register it; nothing without a role."""
        self._instance = getattr(args, ATTRIBUTE, None)
        if self._instance is None or engine_client is None:
            return
        self._state = state
        self._url = _public_url(self._instance, args)
        self._fingerprint = fingerprint_of(engine_client.vllm_config)
        settings = EmbeddingSettings.from_extra_config(args.ec_transfer_config.ec_connector_extra_config)
        self._command_address = settings.command_address(0, 0)
        self._limits = {"max_model_len": int(engine_client.model_config.max_model_len)}
        if self._instance.config.router is not None:
            self._registrar = Registrar(self._instance.config.router, _health_url(args), self.info)
            self._registrar.start()

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
        )

    async def describe(self) -> dict[str, Any]:
        """The answer to `GET /epd/info`; empty without a role."""
        return {} if self._instance is None else self.info().to_mapping()

    async def pool(self) -> dict[str, Any]:
        """The answer to `GET /epd/pool`: how full the region for embeddings is; empty without a role."""
        if self._command_address is None:
            return {}
        return dict(msgspec.to_builtins(await ask_pool_state(self._command_address)))

    async def stop(self) -> None:
        """Sign off at the router."""
        if self._registrar is not None:
            await self._registrar.stop()

    def _models(self) -> tuple[str, ...]:
        assert self._state is not None
        served = self._state.openai_serving_models
        return (*(path.name for path in served.base_model_paths), *served.lora_requests)


def plugin() -> AdminPlugin:
    """The factory behind the entry point."""
    return AdminPlugin()


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
