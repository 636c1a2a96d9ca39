# SPDX-License-Identifier: Apache-2.0
"""Which model a topology serves: the user's, or a tiny one made here."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_epd.launch.config import LaunchConfig

DEFAULT_DEMO = "qwen2.5-vl"


@dataclass(frozen=True, slots=True)
class Model:
    """A model to serve.

    Attributes:
        source: name or folder, as for `vllm serve`.
        arguments: what `vllm serve` needs for it.
    """

    source: str
    arguments: tuple[str, ...] = ()


def resolve_model(config: LaunchConfig) -> Model:
    """The model of a configuration; a demo model is made if it is not there yet.

    Raises:
        ConfigError: an unknown family of demo models.
    """
    if config.model is not None:
        return Model(config.model)
    from vllm_epd.demo import ensure_model, serve_args

    family = config.demo or DEFAULT_DEMO
    quick = ("--enforce-eager", "--max-model-len", "4096", "--served-model-name", family)
    return Model(str(ensure_model(family)), (*quick, *serve_args(family)))


def served_name(model: Model, arguments: Sequence[str]) -> str:
    """The name by which requests call a model that is served with these arguments."""
    name = model.source
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") == "--served-model-name":
            name = value if equals else "".join(arguments[index + 1 : index + 2])
    return name
