# SPDX-License-Identifier: Apache-2.0
"""Who is measured: one server, or the instances behind a router."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from vllm_epd.errors import ConfigError
from vllm_epd.types import InstanceInfo, Role, RoleSet

SHOWN = 300
"""Characters of an unexpected answer."""

WHOLE = RoleSet.of(Role)


@dataclass(frozen=True, slots=True)
class Server:
    """One instance.

    Attributes:
        url: base URL of its API.
        roles: what it serves.
        limits: numbers of its `/epd/info`; those of a server without a role are what its models' cards say.
        software: versions that it tells.
    """

    url: str
    roles: RoleSet
    limits: Mapping[str, int]
    software: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and who works on them.

    Attributes:
        url: base URL to which requests go.
        model: name by which it is asked for.
        root: folder or name from which an instance has loaded it.
        servers: the instances; one of each stage.
        routed: whether a router is in front of them.
    """

    url: str
    model: str
    root: str
    servers: tuple[Server, ...]
    routed: bool

    def of(self, role: Role) -> Server:
        """The instance that serves a stage."""
        return next(server for server in self.servers if role in server.roles)

    @property
    def max_context(self) -> int:
        """Tokens that a request may have."""
        return min(server.limits["max_model_len"] for server in self.servers)


async def find_target(session: aiohttp.ClientSession, url: str, model: str) -> Target:
    """Learn who answers at a URL.

    Args:
        session: asks.
        url: of a router or a server, without a path.
        model: the name of the model, or the folder it was loaded from.

    Raises:
        ConfigError: nobody answers there, another model is served, or the stages are not one instance each.
    """
    url = url.rstrip("/").removesuffix("/v1")
    card = _card(await _json(session, f"{url}/v1/models"), url, model)
    servers = await _servers(session, url)
    routed = servers is not None
    if servers is None:
        servers = (await _server(session, url, card),)
    _check_stages(servers, url)
    first = next(server for server in servers if server.roles.language_model)
    own = _card(await _json(session, f"{first.url}/v1/models"), first.url, card["id"]) if routed else card
    return Target(url, card["id"], str(own.get("root") or card["id"]), servers, routed)


async def _servers(session: aiohttp.ClientSession, url: str) -> tuple[Server, ...] | None:
    """The instances of a router; None if it is none."""
    try:
        listed = await _json(session, f"{url}/epd/instances")
    except ConfigError:
        return None
    return tuple(
        [
            _of(InstanceInfo.from_mapping(await _json(session, f"{each['url']}/epd/info")))
            for each in listed["instances"]
        ]
    )


async def _server(session: aiohttp.ClientSession, url: str, card: Mapping[str, Any]) -> Server:
    """A server that was asked directly; without a role it serves every stage."""
    try:
        info = await _json(session, f"{url}/epd/info")
    except ConfigError:
        info = {}
    if info:
        return _of(InstanceInfo.from_mapping(info))
    version = await _json(session, f"{url}/version")
    return Server(url, WHOLE, {"max_model_len": int(card["max_model_len"])}, {"vllm": str(version["version"])})


def _of(info: InstanceInfo) -> Server:
    software = {"vllm": info.fingerprint.vllm, "dtype": info.fingerprint.dtype}
    return Server(info.url, info.roles, info.limits, software)


def _card(answer: Mapping[str, Any], url: str, model: str) -> dict[str, Any]:
    cards: list[dict[str, Any]] = answer.get("data", [])
    for card in cards:
        if model in (card.get("id"), card.get("root")):
            return card
    served = ", ".join(str(card.get("id")) for card in cards) or "no model"
    raise ConfigError(f"{url} serves {served}, not {model}; name the model as it is served there")


def _check_stages(servers: tuple[Server, ...], url: str) -> None:
    for role in Role:
        count = sum(role in server.roles for server in servers)
        if count != 1:
            raise ConfigError(
                f"{url} has {count} instances for {role}; a profile needs one of each stage, as in 1E1P1D or EPD"
            )


async def _json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        async with session.get(url) as response:
            status, body = response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise ConfigError(f"no answer from {url}: {error!r}; give the URL of a running router or server") from error
    try:
        found: dict[str, Any] = json.loads(body) if status == 200 else {}
    except ValueError:
        found = {}
    if status != 200 or not isinstance(found, dict):
        raise ConfigError(f"{url} answers {status}: {body[:SHOWN]}; expected 200 and a JSON object")
    return found
