# SPDX-License-Identifier: Apache-2.0
"""The package keeps to its layers, and the checker that says so can tell when it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.layers import PACKAGE, find_cycle, violations

ROOT = Path(__file__).parents[2]


def test_package_keeps_to_its_layers():
    assert violations(ROOT) == []


def test_package_has_no_import_cycle():
    assert find_cycle(ROOT) is None


def test_importing_the_package_loads_neither_torch_nor_vllm():
    code = f"import sys, {PACKAGE}; print([m for m in ('torch', 'vllm', 'numpy') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"


@pytest.fixture
def tree(tmp_path):
    def write(sources: dict[str, str]) -> Path:
        """A package of the files named; each of its folders is a package too."""
        for name, source in sources.items():
            path = tmp_path / PACKAGE / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        for path in list(tmp_path.rglob("*.py")):
            (path.parent / "__init__.py").touch()
        (tmp_path / PACKAGE / "__init__.py").touch()
        return tmp_path

    return write


BAD = {
    "words import words' users": ("errors", "import vllm_epd.config", "words may not import vllm_epd.config"),
    "words import a package": ("types", "import msgspec", "words may not import msgspec"),
    "pure imports torch": ("transfer/pool", "import torch", "pure may not import torch"),
    "pure imports its folder": (
        "router/policies",
        "from vllm_epd.router import app",
        "pure may not import vllm_epd.router.app",
    ),
    "pure imports another folder of pure": (
        "controller/policy",
        "from vllm_epd.transfer.wire import Hello",
        "pure may not import vllm_epd.transfer.wire",
    ),
    "service imports device": (
        "router/client",
        "def f():\n    from vllm_epd.transfer.nixl import NixlTransport",
        "service may not import vllm_epd.transfer.nixl",
    ),
    "service imports vllm": ("launch/up", "def f():\n    import vllm.config", "service may not import vllm"),
    "service imports torch for types": (
        "controller/loop",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        "service may not import torch",
    ),
    "device imports the vLLM side": (
        "transfer/agent",
        "from vllm_epd import compat",
        "device may not import vllm_epd.compat",
    ),
    "device imports vllm": ("ops", "import vllm", "device may not import vllm"),
    "vLLM side imports service": (
        "roles/admin",
        "import vllm_epd.router.app",
        "vllm may not import vllm_epd.router.app",
    ),
    "life cycle imports vllm": ("roles/lifecycle", "import vllm", "pure may not import vllm"),
    "plugin imports the vLLM side": (
        "plugin",
        "def f():\n    import vllm_epd.compat.vllm",
        "plugin may not import vllm_epd.compat.vllm",
    ),
    "plugin loads vllm when imported": (
        "plugin",
        "import vllm",
        "plugin may import vllm inside functions only",
    ),
    "nixl elsewhere": (
        "transfer/agent",
        "from nixl._api import nixl_agent",
        "belongs to transfer.nixl alone",
    ),
    "cupy elsewhere": ("ops", "import cupy.cuda", "belongs to transfer.cuda_ipc and kernels.cuda alone"),
    "extension elsewhere": ("transfer/codec", "from vllm_epd import _C", "belongs to ops alone"),
    "extension elsewhere, as a module": ("kernels/cuda", "import vllm_epd._C", "belongs to ops alone"),
    "kernels import their users": ("kernels/cuda", "import vllm_epd.ops", "device may not import vllm_epd.ops"),
    "demo imports first party": (
        "demo/store",
        "import vllm_epd.config",
        "demo may not import vllm_epd.config",
    ),
    "demo loads torch when imported": (
        "demo/image",
        "import torch",
        "demo may import torch inside functions only",
    ),
    "router imports demo": ("router/app", "import vllm_epd.demo", "service may not import vllm_epd.demo"),
    "relative import": ("transfer/agent", "from . import wire", "relative import"),
    "unknown folder": ("utils/misc", "", "no layer"),
}


@pytest.mark.parametrize(("module", "source", "message"), BAD.values(), ids=BAD.keys())
def test_checker_sees(tree, module, source, message):
    named = {"router/app": "", "ops": "", "transfer/wire": "", "transfer/nixl": "", "compat/vllm": "", "config": ""}
    found = violations(tree({**named, module: source}))
    assert len(found) == (2 if module == "utils/misc" else 1)
    assert all(message in line for line in found)


GOOD = {
    "rows above": (
        "transfer/agent",
        "import torch\nfrom vllm_epd.transfer import wire\nimport vllm_epd.errors",
    ),
    "own folder": ("router/app", "import aiohttp\nfrom vllm_epd.router.steps import Step"),
    "vLLM side on device": (
        "connectors/ec",
        "import vllm\nfrom vllm_epd.transfer.agent import TransferAgent",
    ),
    "roles on compat": ("roles/admin", "from vllm_epd.compat.vllm import TARGET_VLLM"),
    "one file each": ("transfer/nixl", "def f():\n    from nixl._api import nixl_agent"),
    "launcher takes a demo model": ("launch/up", "from vllm_epd.demo.store import ensure_model"),
    "demo uses torch": ("demo/image", "def f():\n    import torch"),
    "version": ("cli", "from vllm_epd import __version__"),
}


@pytest.mark.parametrize(("module", "source"), GOOD.values(), ids=GOOD.keys())
def test_checker_accepts(tree, module, source):
    others = {"transfer/wire": "", "transfer/agent": "", "compat/vllm": "", "demo/store": ""}
    assert violations(tree({**others, module: source})) == []


def test_checker_sees_what_a_package_file_loads_for_its_pure_modules(tree):
    found = violations(tree({"transfer/pool": "", "transfer/__init__": "import torch"}))
    assert found == ["vllm_epd.transfer:1: pure may not import torch"]
    deferred = "def create():\n    import torch"
    assert violations(tree({"transfer/pool": "", "transfer/__init__": deferred})) == []


def test_checker_sees_what_the_package_itself_loads(tree):
    assert violations(tree({"__init__": "import numpy"})) == ["vllm_epd:1: the package itself imports numpy"]


def test_checker_sees_a_cycle_through_a_function(tree):
    back = "def f():\n    from vllm_epd.router import a"
    cycle = find_cycle(tree({"router/a": "import vllm_epd.router.b", "router/b": back}))
    assert set(cycle) == {"vllm_epd.router.a", "vllm_epd.router.b"}


def test_a_cycle_for_type_checkers_alone_is_none(tree):
    back = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vllm_epd.router import a"
    assert find_cycle(tree({"router/a": "import vllm_epd.router.b", "router/b": back})) is None
