# SPDX-License-Identifier: Apache-2.0
"""Roles, instances and fingerprints: the words that every part of the project shares."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Self

from vllm_epd.errors import ConfigError

TOKEN_ENV = "EPD_TOKEN"
"""Shared secret of router and instances; registration needs it where it is set."""

ROLE_ENV = "EPD_ROLE"
"""Set in all processes of an instance once its role is known; the engine core and the workers inherit it."""


class Role(str, Enum):
    """One of the three stages of a multimodal request."""

    ENCODE = "encode"
    PREFILL = "prefill"
    DECODE = "decode"

    def __str__(self) -> str:
        return self.value


LETTERS: Mapping[str, Role] = {"E": Role.ENCODE, "P": Role.PREFILL, "D": Role.DECODE}


@dataclass(frozen=True, slots=True)
class RoleSet:
    """The roles of one instance; `encode+prefill+decode` is a whole server."""

    roles: frozenset[Role]

    @classmethod
    def of(cls, roles: Iterable[Role]) -> Self:
        """Build a set from single roles; an empty one is refused."""
        chosen = frozenset(roles)
        if not chosen:
            raise ConfigError("an instance needs at least one role out of encode, prefill, decode")
        return cls(chosen)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `encode`, `prefill+decode` and the like.

        Raises:
            ConfigError: an unknown or repeated role.
        """
        names = [name.strip() for name in text.split("+")]
        known = {role.value for role in Role}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(
                f"unknown role {unknown[0]!r} in {text!r}; expected encode, prefill, decode or a"
                " '+'-joined combination such as encode+prefill"
            )
        if len(set(names)) != len(names):
            raise ConfigError(f"{text!r} names a role twice; name each role once")
        return cls.of(Role(name) for name in names)

    @classmethod
    def from_letters(cls, letters: str) -> Self:
        """Read the letters of a topology: `E`, `PD`, `EPD`."""
        if not letters or any(letter not in LETTERS for letter in letters) or len(set(letters)) != len(letters):
            raise ConfigError(f"{letters!r} is no combination of the letters E, P and D, each at most once")
        return cls.of(LETTERS[letter] for letter in letters)

    @property
    def letters(self) -> str:
        """`E`, `PD`, `EPD`."""
        return "".join(letter for letter, role in LETTERS.items() if role in self.roles)

    @property
    def encode(self) -> bool:
        """Whether encode is among the roles."""
        return Role.ENCODE in self.roles

    @property
    def prefill(self) -> bool:
        """Whether prefill is among the roles."""
        return Role.PREFILL in self.roles

    @property
    def decode(self) -> bool:
        """Whether decode is among the roles."""
        return Role.DECODE in self.roles

    @property
    def language_model(self) -> bool:
        """Whether the instance runs the language model at all."""
        return self.prefill or self.decode

    @property
    def whole(self) -> bool:
        """Whether the instance serves every stage of a request by itself."""
        return len(self.roles) == len(Role)

    def __contains__(self, role: object) -> bool:
        return role in self.roles

    def __str__(self) -> str:
        return "+".join(role.value for role in Role if role in self.roles)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What two instances must share before a tensor of one means anything to the other.

    Each field is a short hex digest or a plain word; equality of all fields is compatibility.
    """

    config: str
    weights: str
    dtype: str
    processor: str
    vllm: str

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Read the mapping that `to_mapping` gives; unknown or missing keys are refused."""
        names = {f.name for f in fields(cls)}
        if set(data) != names or not all(isinstance(value, str) for value in data.values()):
            raise ConfigError(f"a fingerprint has the string fields {sorted(names)}, got {sorted(data)}")
        return cls(**data)

    def to_mapping(self) -> dict[str, str]:
        """The fields by name, ready for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def differences(self, other: "Fingerprint") -> list[str]:
        """`field: mine != theirs` for each field that differs; empty when compatible."""
        return [
            f"{f.name}: {getattr(self, f.name)} != {getattr(other, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]


def kv_epoch(epoch: str) -> str:
    """The name under which the KV agents of an instance are peers; its embedding agents have the plain epoch."""
    return f"{epoch}-kv"


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """What an instance tells the router about itself.

    Attributes:
        instance_id: stable name of the place, `host:port` of its HTTP address.
        epoch: new at each start; a restarted instance is a new peer.
        url: base URL of its OpenAI-compatible API, without a trailing slash.
        roles: present roles; state, not only a start-up flag.
        models: names the instance serves, the base model first, adapters after it.
        fingerprint: what its tensors mean.
        limits: numbers that the router may check early: `max_model_len` in tokens; of an encoder, `pool_bytes` of
            its embedding pool, `page_bytes` of the pool's pages, and `max_item_bytes` of the largest embedding as
            the encoder makes it: the first ones are offered so under a codec too; `resume` is 1 where generation
            may go on from tokens of other instances; of one that prefills or decodes, `max_num_seqs`, the
            sequences that it runs at once, and `kv_tokens`, the tokens that its KV cache holds.
        agents: addresses of the transfer agents that offer its embeddings, by data-parallel rank; peers learn them
            from the router alone.
        kv: the KV connector, `nixl` or `epd`, of an instance that only prefills or only decodes; empty otherwise.
        kv_agents: addresses of the transfer agents that serve its KV caches, by data-parallel and then by
            tensor-parallel rank; empty unless it prefills and `kv` is `epd`.
        kv_shards: how many agents together serve one KV cache: the tensor-parallel size where `kv` is `epd`, otherwise
            1; the same for the instance that takes it over.
    """

    instance_id: str
    epoch: str
    url: str
    roles: RoleSet
    models: tuple[str, ...]
    fingerprint: Fingerprint
    limits: Mapping[str, int] = field(default_factory=dict)
    agents: tuple[str, ...] = ()
    kv: str = ""
    kv_agents: tuple[str, ...] = ()
    kv_shards: int = 1

    @property
    def kv_form(self) -> tuple[str, int]:
        """What prefill and decode must have in common for one to take over the KV caches of the other."""
        return self.kv, self.kv_shards

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Read a registration body.

        Raises:
            ConfigError: a missing, unknown or ill-typed field.
        """
        names = {f.name for f in fields(cls)}
        if unknown := set(data) - names:
            raise ConfigError(f"unknown instance fields {sorted(unknown)}; known: {sorted(names)}")
        try:
            return cls(
                instance_id=_text(data, "instance_id"),
                epoch=_text(data, "epoch"),
                url=_text(data, "url").rstrip("/"),
                roles=RoleSet.parse(_text(data, "roles")),
                models=tuple(str(name) for name in data["models"]),
                fingerprint=Fingerprint.from_mapping(data["fingerprint"]),
                limits={str(key): int(value) for key, value in data.get("limits", {}).items()},
                agents=tuple(str(address) for address in data.get("agents", ())),
                kv=str(data.get("kv", "")),
                kv_agents=tuple(str(address) for address in data.get("kv_agents", ())),
                kv_shards=_count(data, "kv_shards"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"bad instance description: {error!r}") from error

    def to_mapping(self) -> dict[str, Any]:
        """The registration body, ready for JSON."""
        return {
            "instance_id": self.instance_id,
            "epoch": self.epoch,
            "url": self.url,
            "roles": str(self.roles),
            "models": list(self.models),
            "fingerprint": self.fingerprint.to_mapping(),
            "limits": dict(self.limits),
            "agents": list(self.agents),
            "kv": self.kv,
            "kv_agents": list(self.kv_agents),
            "kv_shards": self.kv_shards,
        }


def _count(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key, 1)
    if type(value) is not int or value < 1:
        raise ConfigError(f"instance field {key!r} must be an integer of at least 1, got {value!r}")
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not value:
        raise ConfigError(f"instance field {key!r} must be a non-empty string, got {value!r}")
    return value
