# SPDX-License-Identifier: Apache-2.0
"""The door by which vLLM lets us in: the ordered list of everything we add to it."""

import importlib
import os

from vllm_epd.errors import PluginError
from vllm_epd.types import ROLE_ENV

ALWAYS = (
    ("check the vLLM version", "vllm_epd.compat.vllm:check_version"),
    ("add the --epd-* flags", "vllm_epd.roles.serve:install"),
)
WITH_ROLE = (
    ("share vLLM's logging", "vllm_epd.compat.vllm:share_logging"),
    ("register the embedding connector and our models", "vllm_epd.compat.registry:register"),
    ("name media items by all that decides their embeddings", "vllm_epd.compat.items:install"),
    ("cut items down to shards", "vllm_epd.compat.sharding:install"),
    ("go on from the tokens of other instances", "vllm_epd.compat.resume:install"),
    ("let encoders take in adapters", "vllm_epd.compat.lora:install"),
    ("keep the memory of one request for the next", "vllm_epd.memory:keep_freed_memory"),
)


def register() -> None:
    """Run every step; vLLM may call this several times and in every process, and each step is idempotent.

    Raises:
        PluginError: a step failed; the message names it.
    """
    for what, where in ALWAYS + (WITH_ROLE if ROLE_ENV in os.environ else ()):
        module, _, name = where.partition(":")
        try:
            getattr(importlib.import_module(module), name)()
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"vllm-epd could not {what}: {type(error).__name__}: {error}") from error
