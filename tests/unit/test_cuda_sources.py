# SPDX-License-Identifier: Apache-2.0
"""The CUDA sources compile for every architecture that they are for, and no device is needed to see it."""

import ast
from pathlib import Path

import pytest

from tests.unit import nvrtc

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

pytestmark = pytest.mark.skipif(not nvrtc.is_installed(), reason="nvidia-cuda-nvrtc is not installed")


def _compile(source: str, architecture: str) -> bytes:
    return nvrtc.compile_to_cubin(source, [f"--gpu-architecture={architecture}", "-std=c++17", f"-I{ROOT}/csrc"])


def _kernels(stem: str) -> list[str]:
    """The names by which `vllm_epd.ops` launches what is in a source."""
    if stem == "gather_scatter":
        return ["gather_rows", "scatter_rows"]
    formats = ("float32", "float16", "bfloat16")
    return [f"{way}_{f}_{codec}" for way in ("quantize", "dequantize") for f in formats for codec in ("int8", "fp8")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_source_compiles(path, architecture):
    cubin = _compile(path.read_text(), architecture)
    assert cubin.startswith(b"\x7fELF")
    assert [name for name in _kernels(path.stem) if b".text." + name.encode() + b"\0" not in cubin] == []


def test_an_error_in_a_source_is_seen():
    with pytest.raises(RuntimeError, match=r'identifier "undefined_thing" is undefined'):
        _compile('extern "C" __global__ void broken() { undefined_thing(); }', "sm_90")


def test_setup_compiles_these_sources_for_these_architectures():
    tree = ast.parse((ROOT / "setup.py").read_text())
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("KERNELS", "ARCHITECTURES")
    }
    assert sorted(constants["KERNELS"]) == [path.stem for path in SOURCES]
    assert tuple(f"sm_{number}" for number in constants["ARCHITECTURES"]) == ARCHITECTURES
