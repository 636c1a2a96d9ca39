# SPDX-License-Identifier: Apache-2.0
"""How vLLM names the media items of a request, and which it takes on.

vLLM knows an embedding by the hash of its media alone; the name given here also tells apart model, adapter and cache
salt, and every cache of the engine goes by it. What another instance has encoded comes with its name.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_epd.compat.embeddings import embedding_row_bytes
from vllm_epd.compat.fingerprint import fingerprint_of
from vllm_epd.compat.sharding import asked_shard
from vllm_epd.transfer.keys import content_key
from vllm_epd.transfer.pool import whole_pages
from vllm_epd.types import Fingerprint

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.multimodal.inputs import MultiModalFeatureSpec
    from vllm.v1.engine import EngineCoreRequest

OPTIONS = "epd"
RULES = "epd_item_rules"


@dataclass(frozen=True, slots=True)
class ItemRules:
    """What an instance does with the items of a request.

    Attributes:
        fingerprint: of the instance.
        encodes: whether it has an encoder.
        pool_bytes: of its embedding pool.
        row_bytes: of the embedding of one placeholder token, as the encoder makes it.
    """

    fingerprint: Fingerprint
    encodes: bool
    pool_bytes: int
    row_bytes: int

    @classmethod
    def of(cls, vllm_config: "VllmConfig") -> "ItemRules":
        """Those of the instance that is configured so."""
        config = vllm_config.ec_transfer_config
        settings = config.ec_connector_extra_config
        return cls(
            fingerprint_of(vllm_config),
            bool(settings["tower"]),
            int(settings["pool_bytes"]),
            embedding_row_bytes(vllm_config.model_config),
        )

    def apply(self, request: "EngineCoreRequest") -> None:
        """Name the items of `request`, in place.

        Raises:
            VLLMValidationError: they are larger than the pool that they have to pass through, or a part of them is
                asked for that there cannot be.
        """
        extra = (request.sampling_params and request.sampling_params.extra_args) or {}
        params = extra.get("ec_transfer_params") or {}
        _check_shard(params)
        if self.encodes:
            lora = request.lora_request
            for feature in request.mm_features:
                if feature.identifier not in params:
                    feature.identifier = content_key(
                        feature.mm_hash or feature.identifier,
                        self.fingerprint.to_mapping(),
                        None if lora is None else lora.lora_path,
                        request.cache_salt,
                    )
        offered = isinstance(params.get(OPTIONS), dict) and params[OPTIONS].get("offer")
        passing = [f for f in request.mm_features if offered or f.identifier in params]
        self._check_size({f.identifier: self._item_bytes(f, params.get(f.identifier)) for f in passing})

    def _item_bytes(self, feature: "MultiModalFeatureSpec", entry: Any) -> int:
        """What the item takes up in the pool: what its handles say, or what the encoder will make.

        What a codec may save is not counted on, because the codec may be refused.
        """
        given = entry if isinstance(entry, dict) else {}
        parts = given.get("parts")
        handles = parts if isinstance(parts, list) and parts else [given.get("handle")]
        told = [handle.get("nbytes") if isinstance(handle, dict) else None for handle in handles]
        sizes = [size for size in told if isinstance(size, int)]
        if len(sizes) < len(told):
            sizes = [feature.mm_position.get_num_embeds() * self.row_bytes]
        return sum(map(whole_pages, sizes))

    def _check_size(self, sizes: dict[str, int]) -> None:
        nbytes = sum(sizes.values())
        if nbytes > self.pool_bytes:
            from vllm.exceptions import VLLMValidationError

            raise VLLMValidationError(
                f"The embeddings of this request need {nbytes} bytes of the embedding pool, which has"
                f" {self.pool_bytes}; send less or smaller media, or raise --epd-pool-bytes.",
                parameter="messages",
            )


def _check_shard(params: Any) -> None:
    try:
        asked_shard(params)
    except ValueError as error:
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError(str(error), parameter="ec_transfer_params") from error


def install() -> None:
    """Have vLLM name items so in this process; a second call does nothing."""
    from vllm.v1.engine.input_processor import InputProcessor

    process = InputProcessor.process_inputs
    if hasattr(process, RULES):
        return

    @functools.wraps(process)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        # ### PATCH START content-keys
        if request.mm_features:
            if not hasattr(self, RULES):
                setattr(self, RULES, ItemRules.of(self.vllm_config))
            getattr(self, RULES).apply(request)
        # ### PATCH END
        return request

    setattr(process_inputs, RULES, True)
    InputProcessor.process_inputs = process_inputs
