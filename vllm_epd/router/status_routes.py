# SPDX-License-Identifier: Apache-2.0
"""What can be asked about the router itself: models, health, readiness, version, metrics."""

import time
from functools import partial
from typing import Any

from vllm_epd import __version__
from vllm_epd.router import jsonio
from vllm_epd.router.context import Services
from vllm_epd.router.failures import error_object
from vllm_epd.router.instances import Instance
from vllm_epd.router.parts import Parts
from vllm_epd.router.plan import groups, handover_objection, missing
from vllm_epd.router.web.messages import Request, Response
from vllm_epd.router.web.routes import Route
from vllm_epd.router.workers.numbers import together
from vllm_epd.types import Role


async def models(parts: Parts, _: Request) -> Response:
    """GET /v1/models: what the registered language models serve, each name once."""
    cards: dict[str, dict[str, Any]] = {}
    for each in _available(parts):
        if each.info.roles.language_model:
            for name in each.info.models:
                cards.setdefault(name, _card(name, each))
    return jsonio.answer({"object": "list", "data": list(cards.values())})


async def health(parts: Parts, _: Request) -> Response:
    """GET /health: 200 while the router lives, with what is there, and which of several processes has answered."""
    which = {} if parts.worker is None else {"worker": parts.worker.number}
    return jsonio.answer({"status": "ok", "stages": _stages(_available(parts)), **which})


async def ready(parts: Parts, _: Request) -> Response:
    """GET /ready: 200 when instances of one fingerprint serve every stage and can work together, otherwise 503."""
    available = _available(parts)
    found = groups(available)
    lacking = min((missing(group) for group in found), key=len, default=list(Role))
    names = [role.value for role in lacking]
    if lacking:
        return _not_ready(f"no {' and no '.join(names)} instance among those of one fingerprint", names)
    objections = [handover_objection(group) for group in found if not missing(group)]
    if all(objections):
        return _not_ready(str(objections[0]), names)
    return jsonio.answer({"status": "ready", "stages": _stages(available)})


def _not_ready(reason: str, lacking: list[str]) -> Response:
    body = {**error_object(f"not ready: {reason}", "ServiceUnavailableError", 503), "missing": lacking}
    return jsonio.answer(body, 503)


async def show_version(_: Parts, __: Request) -> Response:
    """GET /version."""
    return jsonio.answer({"version": __version__})


async def metrics(parts: Parts, _: Request) -> Response:
    """GET /metrics, for Prometheus; of all workers, if there are several."""
    text = own_metrics(parts.services)
    if parts.worker is not None:
        text = together({parts.worker.number: text.decode(), **await parts.siblings.metrics()})
    return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")


def own_metrics(services: Services) -> bytes:
    """The numbers of this process."""
    waiting = {stage: queue.waiting for stage, queue in services.scheduling.queues.items()}
    return services.metrics.render(services.registry.listed(), waiting, services.recovery.pairs.parted)


def _available(parts: Parts) -> tuple[Instance, ...]:
    return parts.services.registry.available()


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


def routes(parts: Parts) -> tuple[Route, ...]:
    """All of them, for one router."""
    handlers = {
        "/v1/models": models,
        "/health": health,
        "/ready": ready,
        "/version": show_version,
        "/metrics": metrics,
    }
    return tuple(Route("GET", path, partial(handler, parts)) for path, handler in handlers.items())
