# SPDX-License-Identifier: Apache-2.0
"""Writing the small files of a model folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_REMOTE_CODE = Path(__file__).parent / "remote_code"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object the way model folders have it: indented, in the given order."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_remote_code(folder: Path, *modules: str) -> None:
    """Put modules of `remote_code/` into a model's folder, where `auto_map` looks for them."""
    for module in modules:
        shutil.copyfile(_REMOTE_CODE / f"{module}.py", folder / f"{module}.py")
