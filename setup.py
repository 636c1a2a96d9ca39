# SPDX-License-Identifier: Apache-2.0
"""Build steps that pyproject.toml cannot express: the native code in csrc/.

`EPD_BUILD_EXT` says what becomes of it: `1` builds it or fails, `0` leaves it out, and `auto`, the default, builds it
where that works and says so in one line where it does not. Without it `vllm_epd.ops` runs on torch alone.

`vllm_epd._C` needs a C++ compiler and Python's headers, and no torch: it is handed addresses. So it builds in an
isolated environment, and one binary serves every torch and, by the limited API, every Python from 3.11 on. The
sources of the CUDA kernels are shipped in any case, for CuPy to compile; an nvcc, where there is one, does so ahead.
"""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).parent
SOURCES = ("bindings", "codec", "copies", "gather_scatter")
KERNELS = ("codec", "gather_scatter")
KERNEL_FILES = (*(f"{name}.cu" for name in KERNELS), "number_formats.h")
ARCHITECTURES = ("80", "90", "100")
KERNEL_FOLDER = "_cuda"

# Contraction into multiply-add would round otherwise than torch does.
COMPILE_ARGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]


class BuildPy(build_py):
    """Puts the sources of the CUDA kernels into the package."""

    def run(self) -> None:
        """Copy them beside the modules, in place of what an earlier build has left there."""
        super().run()
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / "vllm_epd"
        for extension in package.glob("_C.*so"):
            extension.unlink()
        folder = package / KERNEL_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in KERNEL_FILES:
            shutil.copy2(ROOT / "csrc" / name, folder / name)


class BuildExt(build_ext):
    """Compiles the extension, and the CUDA kernels where there is an nvcc."""

    def run(self) -> None:
        """Compile both; under `auto` what fails is left out with a warning."""
        # Before the compiler runs: where that fails, the path is no longer the one in the source tree.
        folder = Path(self.get_ext_fullpath("vllm_epd._C")).parent / KERNEL_FOLDER
        self._unless_optional(super().run, "vllm_epd._C")
        nvcc = _find_nvcc()
        if nvcc:
            folder.mkdir(parents=True, exist_ok=True)
            for name in KERNELS:
                self._unless_optional(lambda name=name: _compile_kernels(nvcc, name, folder), f"{name}.cu")

    def _unless_optional(self, build: Callable[[], None], what: str) -> None:
        try:
            build()
        except (BaseError, CCompilerError, OSError, subprocess.CalledProcessError) as error:
            if _choice() == "1":
                raise
            self.warn(f"left out {what}, which did not compile: {error}")


def _compile_kernels(nvcc: str, name: str, folder: Path) -> None:
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    newest = ARCHITECTURES[-1]
    targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    output = folder / f"{name}.fatbin"
    subprocess.run([nvcc, "-std=c++17", "-O3", "-fatbin", *targets, f"csrc/{name}.cu", "-o", output], check=True)


def _find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def _choice() -> str:
    choice = os.environ.get("EPD_BUILD_EXT", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"EPD_BUILD_EXT is {choice!r}; it can be auto, 1 or 0")
    return choice


def _missing() -> str | None:
    """What compiling needs and is not here."""
    compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
    if not shutil.which(compiler):
        return f"a C++ compiler ({compiler})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.exists() else f"Python's headers ({header})"


def _wanted() -> bool:
    choice = _choice()
    missing = _missing()
    if choice == "1" and missing:
        raise SystemExit(f"EPD_BUILD_EXT=1 needs {missing}")
    if choice == "auto" and missing:
        print(f"vllm_epd: building without native code, which needs {missing}")
    return choice != "0" and not missing


EXTENSION = Extension(
    "vllm_epd._C",
    [f"csrc/{name}.cpp" for name in SOURCES],
    depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*.h"))],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=True,
    language="c++",
    extra_compile_args=COMPILE_ARGS,
    extra_link_args=["-pthread"],
)

wanted = _wanted()
setup(
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    ext_modules=[EXTENSION] if wanted else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if wanted else {},
)
