# SPDX-License-Identifier: Apache-2.0
"""How instances come, stay, go and learn of each other: the routes under /epd."""

import math
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from vllm_epd.errors import BadRequestError, ConfigError
from vllm_epd.router import jsonio
from vllm_epd.router.instances import Instance, InstanceRegistry
from vllm_epd.router.parts import Parts
from vllm_epd.router.web.errors import NotFoundError
from vllm_epd.router.web.messages import Request, Response
from vllm_epd.router.web.routes import Route
from vllm_epd.types import InstanceInfo, RoleSet

_HEARTBEAT_FIELDS = frozenset({"epoch", "roles", "models"})
_LONGEST_POLL_S = 30.0


async def register(parts: Parts, request: Request) -> Response:
    """POST: an instance describes itself and is told how often to report."""
    services = parts.services
    info = _instance_info(jsonio.decode_request(await request.body.read()))
    services.registry.register(info)
    await parts.siblings.lives(info)
    return jsonio.answer({"heartbeat_s": services.config.heartbeat_s, "ttl_s": services.config.ttl_s})


async def heartbeat(parts: Parts, request: Request) -> Response:
    """PUT: an instance lives, and says what it does now; 404 asks it to register again."""
    body = jsonio.decode_request(await request.body.read())
    if unknown := set(body) - _HEARTBEAT_FIELDS:
        raise BadRequestError(f"unknown heartbeat fields {sorted(unknown)}; known: {sorted(_HEARTBEAT_FIELDS)}")
    registry, instance_id = parts.services.registry, request.params["instance_id"]
    if not registry.heartbeat(instance_id, _epoch(body.get("epoch")), _roles(body), _models(body)):
        raise _not_registered(request)
    (info,) = [each.info for each in registry.listed() if each.name == instance_id]
    await parts.siblings.lives(info)
    return jsonio.answer({})


async def remove(parts: Parts, request: Request) -> Response:
    """DELETE: an instance leaves and gets no new work."""
    instance_id, epoch = request.params["instance_id"], _epoch(request.query.get("epoch"))
    if not parts.services.registry.remove(instance_id, epoch):
        raise _not_registered(request)
    await parts.siblings.left(instance_id, epoch)
    return Response(status=204)


async def list_instances(parts: Parts, _: Request) -> Response:
    """GET: who is there."""
    registry = parts.services.registry
    return jsonio.answer({"instances": [_described(registry, each) for each in registry.listed()]})


async def list_peers(parts: Parts, request: Request) -> Response:
    """GET: from whom embeddings may be taken; waits up to `wait_s` for another table than that of `after`."""
    wait_s = _seconds(request.query.get("wait_s", "0"))
    table = await parts.peers.after(request.query.get("after"), min(wait_s, _LONGEST_POLL_S))
    return jsonio.answer(table)


def _described(registry: InstanceRegistry, instance: Instance) -> dict[str, Any]:
    return {
        **instance.info.to_mapping(),
        "age_s": round(registry.age_s(instance), 3),
        "outstanding": instance.outstanding,
        "suspended": instance.suspended,
    }


def _instance_info(body: jsonio.JsonObject) -> InstanceInfo:
    try:
        info = InstanceInfo.from_mapping(body)
        address = urlsplit(info.url)
    except (ConfigError, ValueError) as error:
        raise BadRequestError(str(error)) from error
    if address.scheme not in ("http", "https") or not address.netloc:
        raise BadRequestError(f"url must be an http or https address, got {info.url!r}", param="url")
    return info


def _epoch(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequestError("`epoch` must be a non-empty string", param="epoch")
    return value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise BadRequestError(f"`wait_s` must be a number of seconds, got {text!r}", param="wait_s")
    return seconds


def _roles(body: jsonio.JsonObject) -> RoleSet | None:
    if "roles" not in body:
        return None
    try:
        return RoleSet.parse(body["roles"])
    except (ConfigError, AttributeError) as error:
        raise BadRequestError(f"bad roles: {error}", param="roles") from error


def _models(body: jsonio.JsonObject) -> tuple[str, ...] | None:
    if "models" not in body:
        return None
    models = body["models"]
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
        raise BadRequestError("`models` must be a list of names", param="models")
    return tuple(models)


def _not_registered(request: Request) -> NotFoundError:
    instance_id = request.params["instance_id"]
    return NotFoundError(f"instance {instance_id} is not registered with this epoch; register it")


def routes(parts: Parts) -> tuple[Route, ...]:
    """All of them, for one router."""
    return (
        Route("POST", "/epd/instances", partial(register, parts)),
        Route("GET", "/epd/instances", partial(list_instances, parts)),
        Route("PUT", "/epd/instances/{instance_id}", partial(heartbeat, parts)),
        Route("DELETE", "/epd/instances/{instance_id}", partial(remove, parts)),
        Route("GET", "/epd/peers", partial(list_peers, parts)),
    )
