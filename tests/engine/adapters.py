# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of the demo model's language model, made here."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 4
MODULES = ("q_proj", "v_proj")


def make_adapter(folder: Path, model: Path, seed: int) -> Path:
    """An adapter of random weights for the model in `model`, as PEFT saves one."""
    config = json.loads((model / "config.json").read_text())
    text = config.get("text_config", config)
    width, heads = text["hidden_size"], text["num_attention_heads"]
    widths = {"q_proj": width, "v_proj": width // heads * text["num_key_value_heads"]}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(text["num_hidden_layers"]):
        for module in MODULES:
            name = f"base_model.model.model.language_model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, width, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(widths[module], RANK, generator=generator)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(MODULES), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder
