# SPDX-License-Identifier: Apache-2.0
"""Which demo models there are, and where a made one is kept."""

import importlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_epd.errors import ConfigError

# Part of every folder name: raise it whenever a family's files would come out different.
RECIPE_VERSION = 3


@dataclass(frozen=True, slots=True)
class _Family:
    """One family: the module whose `build(folder, seed)` writes it, and the flags that serving it needs."""

    module: str
    serve_args: tuple[str, ...] = ()


# Modules by name: they load numpy, safetensors and tokenizers, which a mere list of names must not.
_FAMILIES: Mapping[str, _Family] = {
    "qwen2.5-vl": _Family("vllm_epd.demo.qwen2_5_vl"),
    "internvl2": _Family("vllm_epd.demo.internvl2", ("--trust-remote-code",)),
    "minicpm-v-2.6": _Family("vllm_epd.demo.minicpm_v_2_6", ("--trust-remote-code",)),
}

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)


def ensure_model(family: str, root: Path | None = None, *, seed: int = 0) -> Path:
    """Return the folder of a demo model, making it first if it is absent.

    Safe to call from several processes at once: each makes the model aside and the first one to finish puts
    it in place; a folder that exists is complete and is never written to again.

    Args:
        family: one of `FAMILIES`.
        root: folder that holds the models, by default `$XDG_CACHE_HOME/vllm_epd/demo` or
            `~/.cache/vllm_epd/demo`.
        seed: another seed gives other weights.

    Raises:
        ConfigError: an unknown family.
    """
    recipe = _family(family)
    folder = (root or _default_root()).absolute() / f"{family}-v{RECIPE_VERSION}-seed{seed}"
    if not folder.is_dir():
        _make(recipe, folder, seed)
    return folder


def serve_args(family: str) -> list[str]:
    """The flags that `vllm serve <folder>` needs for this family, beyond its usual ones.

    Raises:
        ConfigError: an unknown family.
    """
    return list(_family(family).serve_args)


def _family(name: str) -> _Family:
    if name not in _FAMILIES:
        raise ConfigError(f"unknown demo model family {name!r}; known: {', '.join(FAMILIES)}")
    return _FAMILIES[name]


def _default_root() -> Path:
    # The XDG specification treats an empty variable as an unset one.
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vllm_epd" / "demo"


def _make(recipe: _Family, folder: Path, seed: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as aside:
        made = Path(aside) / folder.name
        made.mkdir()
        importlib.import_module(recipe.module).build(made, seed)
        try:
            os.replace(made, folder)
        except OSError:
            # A folder with files in it cannot be replaced: another process was first, with the same content.
            if not folder.is_dir():
                raise
