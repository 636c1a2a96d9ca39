# SPDX-License-Identifier: Apache-2.0
"""Typed configuration: how it is read, and that of one instance (`vllm serve --epd-*`).

Files are YAML, read by OmegaConf, so `${oc.env:NAME}` works in them. The command line wins over the file; an
unknown key or a value of another type is refused with a message that names source, key and value.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vllm_epd.errors import ConfigError
from vllm_epd.types import RoleSet

T = TypeVar("T")

UNITS: Mapping[str, int] = {
    unit: base**power
    for base, units in ((1000, ("B", "KB", "MB", "GB", "TB")), (1024, ("", "KIB", "MIB", "GIB", "TIB")))
    for power, unit in enumerate(units)
}
WORDS: Mapping[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
COMMAND_LINE = "command line"


def setting(
    default: Any,
    help_text: str,
    *,
    parse: Callable[[Any], Any] | None = None,
    expects: str | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a configuration, with what is shown to the user about it.

    Args:
        default: a value, or a class to make one.
        help_text: one sentence.
        parse: reads what the file or the command line gives; raises ValueError.
        expects: what a message says a value should be, where the type alone says too little.
        choices: the values there are; empty where any will do.
    """
    metadata = {"help": help_text, "parse": parse, "expects": expects, "choices": choices}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_bytes(value: int | str) -> int:
    """Read `1073741824`, `512MiB` or `1.5 GB`.

    Raises:
        ValueError: something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(value).strip().upper())
    if found is None or found[2] not in UNITS:
        raise ValueError(f"{value!r} is no size such as 512MiB or 1GiB")
    number = float(found[1]) if "." in found[1] else int(found[1])
    return int(number * UNITS[found[2]])


def size(default: int | None, help_text: str) -> Any:
    """A setting in bytes."""
    return setting(default, help_text, parse=parse_bytes, expects="a size such as 512MiB or 1GiB")


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """One instance, as `vllm serve --epd-*` or the file of `--epd-config` describe it; see INSTANCE_FLAGS."""

    role: str | None = setting(
        None, "What this server does: encode, prefill, decode or a combination such as encode+prefill."
    )
    router: str | None = setting(None, "URL of the router to register at.", expects="an http(s) URL")
    advertise: str | None = setting(
        None, "Host or URL by which other machines reach this instance.", expects="a host or a URL"
    )
    pool_bytes: int = size(2**30, "Memory for embeddings, those offered and those fetched, such as 512MiB.")
    lease_s: float = setting(60.0, "Seconds that an embedding waits for its consumer before it is dropped.")
    fetch_timeout_s: float = setting(30.0, "Seconds to wait for an embedding, or for room for one, at most.")
    transport: str = setting(
        "auto",
        "How embeddings travel; auto takes the best that two peers share.",
        choices=("auto", "shm", "cuda_ipc", "nixl"),
    )
    nixl_backend: str = setting("UCX", "What NIXL moves bytes with.")
    embedding_codec: str = setting(
        "none", "How embeddings are compressed for others: fp8 or int8 numbers.", choices=("none", "fp8", "int8")
    )
    embedding_check: str = setting(
        "none",
        "Whether embeddings that are not finite are refused, bytes have a checksum, or both.",
        choices=("none", "finite", "checksum", "all"),
    )
    kv_connector: str = setting(
        "epd",
        "How KV caches travel from prefill to decode: our own way, or vLLM's NIXL connector.",
        choices=("epd", "nixl"),
    )
    kv_pool_bytes: int | None = size(
        None, "Memory for KV caches on their way; without it, room for two prompts of the greatest length."
    )
    kv_lease_s: int = setting(60, "Seconds that a prefilled KV cache waits for its decoder.")

    def __post_init__(self) -> None:
        if self.role is not None:
            RoleSet.parse(self.role)
        if self.router is not None and not re.match(r"https?://[^/]", self.router):
            raise ConfigError(f"router: expected an http(s) URL, got {self.router!r}")
        check_positive(self, "pool_bytes", "lease_s", "fetch_timeout_s", "kv_pool_bytes", "kv_lease_s")


@dataclass(frozen=True, slots=True)
class FlagSpec:
    """What a command line needs to offer one setting.

    Attributes:
        name: the setting, and its key in a file.
        flag: `--epd-...`.
        parse: from the text of the command line to the value; raises ValueError.
        default: holds where neither command line nor file give a value.
        help: one sentence.
        choices: the values there are; empty where any will do.
    """

    name: str
    flag: str
    parse: Callable[[Any], Any]
    default: Any
    help: str
    choices: tuple[str, ...]


INSTANCE_FLAGS = tuple(
    FlagSpec(
        name=each.name,
        flag="--epd-" + each.name.replace("_", "-"),
        parse=each.metadata["parse"] or (each.type if each.type in (int, float) else str),
        default=each.default,
        help=each.metadata["help"],
        choices=each.metadata["choices"],
    )
    for each in fields(InstanceConfig)
)


def load_instance_config(file: Path | None, overrides: Mapping[str, Any]) -> InstanceConfig:
    """Read the configuration of an instance; `overrides`, from the command line, win over the file.

    Raises:
        ConfigError: unknown keys, wrong types, impossible values, an unreadable file.
    """
    return load(InstanceConfig, file, overrides)


def load(cls: type[T], file: Path | None, overrides: Mapping[str, Any]) -> T:
    """Read a dataclass whose fields are made by `setting`.

    Raises:
        ConfigError: unknown keys, wrong types, impossible values, an unreadable file.
    """
    config: Any = OmegaConf.structured(cls)
    for source, values in ((str(file), read_mapping(file) if file else {}), (COMMAND_LINE, overrides)):
        for key, value in _parsed(cls, values, source, "").items():
            try:
                config = OmegaConf.merge(config, {key: value})
            except OmegaConfBaseException as error:
                raise _bad_value(cls, key, values[key], source) from error
    return cast(T, OmegaConf.to_object(config))


def check_positive(config: Any, *names: str) -> None:
    """Refuse a configuration in which one of these settings is given and not above zero."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name}: expected a positive number, got {value}")


def read_mapping(file: Path) -> dict[str, Any]:
    """The settings of a YAML file, as they are.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except Exception as error:  # the YAML parser's own among them, which only OmegaConf may import here
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected a mapping of settings, got a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _parsed(cls: Any, values: Mapping[str, Any], source: str, prefix: str) -> dict[str, Any]:
    """The values as their fields' `parse` reads them, in nested dataclasses too."""
    known = {each.name: each for each in fields(cls)}
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"{source}: unknown setting {prefix}{unknown[0]}; known: {', '.join(known)}")
    parsed = dict(values)
    for key, value in values.items():
        parse, choices = known[key].metadata["parse"], known[key].metadata["choices"]
        if is_dataclass(known[key].type) and isinstance(value, Mapping):
            parsed[key] = _parsed(known[key].type, value, source, f"{prefix}{key}.")
        elif choices and value not in choices:
            raise _bad_value(cls, key, value, source)
        elif parse:
            try:
                parsed[key] = parse(value)
            except (ValueError, TypeError) as error:
                raise _bad_value(cls, key, value, source) from error
    return parsed


def _bad_value(cls: Any, key: str, value: Any, source: str) -> ConfigError:
    described = next(each for each in fields(cls) if each.name == key)
    choices = described.metadata["choices"]
    kind = next((one for one in get_args(described.type) if one in WORDS), described.type)
    expected = " or ".join(choices) or described.metadata["expects"] or WORDS.get(kind, str(kind))
    return ConfigError(f"{source}: {key}: expected {expected}, got {value!r}")
