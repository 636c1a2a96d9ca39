# SPDX-License-Identifier: Apache-2.0
"""What an instance's tensors mean, out of its model's files and its configuration."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_epd.types import Fingerprint

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SAMPLES = 16
SAMPLE_BYTES = 4096
HEADER_LIMIT = 64 * 1024 * 1024

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def fingerprint_of(vllm_config: "VllmConfig") -> Fingerprint:
    """The fingerprint of an instance; the same for the same files wherever they lie."""
    import vllm

    model = vllm_config.model_config
    folder = model_folder(model.model, model.revision)
    options = {
        "quantization": str(model.quantization),
        "overrides": repr(model.hf_overrides),
        "kwargs": repr(getattr(model.multimodal_config, "mm_processor_kwargs", None)),
    }
    return Fingerprint(
        config=_digest([_read(folder / "config.json"), _text(options, "quantization", "overrides")]),
        weights=_weights(folder, vllm_config.load_config),
        dtype=str(model.dtype).removeprefix("torch."),
        processor=_digest([*(_read(folder / name) for name in PROCESSOR_FILES), _text(options, "kwargs")]),
        vllm=vllm.__version__,
    )


def weights_digest(files: Iterable[Path]) -> str:
    """Digest of weight files by name, size, header and samples spread over each.

    Reading all of a large model takes minutes; another training run or another seed differs in any sample.
    """
    pieces: list[bytes] = []
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        pieces.append(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            header = min(int.from_bytes(file.read(8), "little") + 8, HEADER_LIMIT, size)
            file.seek(0)
            pieces.append(file.read(header if path.suffix == ".safetensors" else SAMPLE_BYTES))
            for index in range(SAMPLES):
                file.seek(size * (index + 1) // (SAMPLES + 1))
                pieces.append(file.read(SAMPLE_BYTES))
    return _digest(pieces)


def _weights(folder: Path, load_config: Any) -> str:
    load_format = str(load_config.load_format)
    if load_format == "dummy":
        return "dummy"
    files = [path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES] if folder.is_dir() else []
    return weights_digest(files)


def model_folder(model: str, revision: str | None) -> Path:
    """Where the files of `model` lie: the folder it names, or the local snapshot of a hub repository."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _text(options: dict[str, str], *names: str) -> bytes:
    return json.dumps({name: options[name] for name in names}, sort_keys=True).encode()


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()[:16]
