# SPDX-License-Identifier: Apache-2.0
"""What can be asked about the router itself: models, health, readiness, version, metrics."""

import time
from typing import Any

from aiohttp import web

from vllm_epd import __version__
from vllm_epd.router import jsonio
from vllm_epd.router.failures import error_object
from vllm_epd.router.instances import Instance
from vllm_epd.router.keys import SERVICES, SIBLINGS, WORKER
from vllm_epd.router.plan import groups, handover_objection, missing
from vllm_epd.router.workers.numbers import together
from vllm_epd.types import Role


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: what the registered language models serve, each name once."""
    cards: dict[str, dict[str, Any]] = {}
    for each in _available(request):
        if each.info.roles.language_model:
            for name in each.info.models:
                cards.setdefault(name, _card(name, each))
    return _json({"object": "list", "data": list(cards.values())})


async def health(request: web.Request) -> web.Response:
    """GET /health: 200 while the router lives, with what is there, and which of several processes has answered."""
    worker = request.app[WORKER]
    which = {} if worker is None else {"worker": worker.number}
    return _json({"status": "ok", "stages": _stages(_available(request)), **which})


async def ready(request: web.Request) -> web.Response:
    """GET /ready: 200 when instances of one fingerprint serve every stage and can work together, otherwise 503."""
    available = _available(request)
    found = groups(available)
    lacking = min((missing(group) for group in found), key=len, default=list(Role))
    names = [role.value for role in lacking]
    if lacking:
        return _not_ready(f"no {' and no '.join(names)} instance among those of one fingerprint", names)
    objections = [handover_objection(group) for group in found if not missing(group)]
    if all(objections):
        return _not_ready(str(objections[0]), names)
    return _json({"status": "ready", "stages": _stages(available)})


def _not_ready(reason: str, lacking: list[str]) -> web.Response:
    body = {**error_object(f"not ready: {reason}", "ServiceUnavailableError", 503), "missing": lacking}
    return web.Response(body=jsonio.encode(body), status=503, content_type="application/json")


async def show_version(request: web.Request) -> web.Response:
    """GET /version."""
    return _json({"version": __version__})


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics, for Prometheus; of all workers, if there are several."""
    worker, text = request.app[WORKER], own_metrics(request.app)
    if worker is not None:
        text = together({worker.number: text.decode(), **await request.app[SIBLINGS].metrics()})
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def own_metrics(app: web.Application) -> bytes:
    """The numbers of this process."""
    services = app[SERVICES]
    waiting = {stage: queue.waiting for stage, queue in services.scheduling.queues.items()}
    return services.metrics.render(services.registry.listed(), waiting, services.recovery.pairs.parted)


def _available(request: web.Request) -> tuple[Instance, ...]:
    return request.app[SERVICES].registry.available()


def _stages(available: tuple[Instance, ...]) -> dict[str, int]:
    return {role.value: sum(role in each.info.roles for each in available) for role in Role}


def _card(name: str, instance: Instance) -> dict[str, Any]:
    base = instance.info.models[0]
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "vllm",
        "root": name,
        "parent": None if name == base else base,
        "max_model_len": instance.info.limits.get("max_model_len"),
    }


def _json(value: Any) -> web.Response:
    return web.Response(body=jsonio.encode(value), content_type="application/json")


ROUTES = (
    web.get("/v1/models", models),
    web.get("/health", health),
    web.get("/ready", ready),
    web.get("/version", show_version),
    web.get("/metrics", metrics),
)
