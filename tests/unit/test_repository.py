# SPDX-License-Identifier: Apache-2.0
"""What holds for the files of the repository: their headers, their sizes, and that pinned versions agree."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = "# SPDX-License-Identifier: Apache-2.0"
MOST_LINES = 500
SOURCES = sorted(
    path for folder in ("vllm_epd", "tests", "patches", "experiments", "csrc") for path in (ROOT / folder).rglob("*.py")
) + [ROOT / "setup.py"]


def _ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", SOURCES, ids=_ids(SOURCES))
def test_file_starts_with_its_licence(path):
    first = path.read_text().splitlines()[:2]
    assert HEADER in (first[1:] if first and first[0].startswith("#!") else first[:1])


def test_no_file_of_the_package_is_too_long():
    lengths = {path: path.read_text().count("\n") for path in SOURCES if "vllm_epd" in path.parts}
    assert [str(path) for path, lines in lengths.items() if lines > MOST_LINES] == []


def _project(path):
    return tomllib.loads((ROOT / path).read_text())["project"]


def _pin(requirements, name):
    pins = [re.fullmatch(rf"{name}==(\S+)", requirement) for requirement in requirements]
    (version,) = [pin[1] for pin in pins if pin]
    return version


def _target_vllm():
    tree = ast.parse((ROOT / "vllm_epd/compat/vllm.py").read_text())
    (value,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TARGET_VLLM"
    ]
    return value


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_extra_pins_the_vllm_that_the_package_is_written_for(extra):
    extras = _project("pyproject.toml")["optional-dependencies"]
    assert _pin(extras[extra], "vllm") == _target_vllm()


def test_cpu_stand_in_is_the_vllm_that_the_package_is_written_for():
    stand_in = _project("patches/vllm-cpu/pyproject.toml")
    assert stand_in["name"] == "vllm"
    assert stand_in["version"] == f"{_target_vllm()}+cpu"
    assert _pin(stand_in["dependencies"], "vllm-cpu") == _target_vllm()


def test_version_of_the_package_is_that_of_its_metadata():
    source = (ROOT / "vllm_epd/__init__.py").read_text()
    assert f'__version__ = "{_project("pyproject.toml")["version"]}"' in source
