# SPDX-License-Identifier: Apache-2.0
"""What `EPD_BUILD_EXT` makes of the native code, as far as can be seen without building it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).parents[2]
SHOW = "import setuptools; setuptools.setup = lambda **given: print(len(given['ext_modules'])); import runpy; "


@pytest.fixture
def run(tmp_path):
    def run(*, compiler: bool, **env: str) -> subprocess.CompletedProcess[str]:
        """Run setup.py with or without a compiler; it prints how many extensions it would build."""
        cxx = tmp_path / "c++"
        if compiler:
            cxx.touch(mode=0o755)
        code = f"{SHOW} runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')"
        env = {**os.environ, "CXX": str(cxx), **env}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("choice", "compiler", "shown"),
    [
        ({}, True, ["1"]),
        ({"EPD_BUILD_EXT": "auto"}, True, ["1"]),
        ({"EPD_BUILD_EXT": "1"}, True, ["1"]),
        ({"EPD_BUILD_EXT": "0"}, True, ["0"]),
        ({"EPD_BUILD_EXT": "0"}, False, ["0"]),
    ],
)
def test_extension_is_built_as_chosen(run, monkeypatch, choice, compiler, shown):
    monkeypatch.delenv("EPD_BUILD_EXT", raising=False)
    assert run(compiler=compiler, **choice).stdout.split() == shown


def test_auto_without_a_compiler_says_so_in_one_line(run):
    said, built = run(compiler=False, EPD_BUILD_EXT="auto").stdout.splitlines()
    assert said.startswith("vllm_epd: building without native code, which needs a C++ compiler")
    assert built == "0"


@pytest.mark.parametrize(
    ("choice", "message"),
    [("1", "EPD_BUILD_EXT=1 needs a C++ compiler"), ("yes", "EPD_BUILD_EXT is 'yes'"), ("", "EPD_BUILD_EXT is ''")],
)
def test_what_cannot_be_done_is_refused(run, choice, message):
    done = run(compiler=False, EPD_BUILD_EXT=choice)
    assert done.returncode != 0
    assert message in done.stderr
