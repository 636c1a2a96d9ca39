# SPDX-License-Identifier: Apache-2.0
"""Adapters of the language model on an instance that has none.

vLLM refuses an adapter with weights for modules that the model lacks. An encoder has to know a fleet's adapters by name
and path all the same: requests name them, and embeddings are kept apart by them.
"""

import functools
import os
from typing import Any

from vllm_epd.types import ROLE_ENV, RoleSet

MARK = "epd_encoder_adapters"


def install() -> None:
    """Have an encoder take in adapters without loading them; a second call does nothing.

    Not where adapters change the encoder itself (`--enable-tower-connector-lora`).
    """
    if RoleSet.parse(os.environ[ROLE_ENV]).language_model:
        return
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    add = LRUCacheWorkerLoRAManager.add_adapter
    if hasattr(add, MARK):
        return

    @functools.wraps(add)
    def add_adapter(self: Any, lora_request: Any) -> bool:
        # ### PATCH START encoder-adapters
        if not self.lora_config.enable_tower_connector_lora:
            return True
        # ### PATCH END
        return bool(add(self, lora_request))

    setattr(add_adapter, MARK, True)
    LRUCacheWorkerLoRAManager.add_adapter = add_adapter
