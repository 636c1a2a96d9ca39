# SPDX-License-Identifier: Apache-2.0
"""Names that vLLM learns from us. Everything is registered as a string and loaded when it is used."""

CONNECTOR = "EPDEmbeddingConnector"
KV_CONNECTOR = "EPDKVConnector"

MODELS = {
    "InternVLChatModel": "vllm_epd.compat.internvl:EPDInternVLChatModel",
    "Qwen2_5_VLForConditionalGeneration": "vllm_epd.compat.qwen:Qwen2_5_VLForConditionalGeneration",
}
"""Architectures whose parser in vLLM declares too few `embedding_fields`, and our subclass that declares them."""

_registered = False


def register() -> None:
    """Let our connectors be found by their names, and extend the models above; once per process."""
    global _registered
    if _registered:
        return
    _registered = True
    from vllm import ModelRegistry
    from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    ECConnectorFactory.register_connector(CONNECTOR, "vllm_epd.connectors.ec", CONNECTOR)
    KVConnectorFactory.register_connector(KV_CONNECTOR, "vllm_epd.connectors.kv", KV_CONNECTOR)
    # ### PATCH START embedding-fields
    for architecture, where in MODELS.items():
        ModelRegistry.register_model(architecture, where)
    # ### PATCH END
