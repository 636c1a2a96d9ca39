# SPDX-License-Identifier: Apache-2.0
"""One real system at a time, kept for all tests that want the same one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from tests.engine.system import System, running_system  # noqa: E402

TOPOLOGY = "2E1P1D"
LEASE_S = 15
OPTIONS = (
    "--allowed-media-domains",
    "127.0.0.1",
    "--epd-lease-s",
    str(LEASE_S),
    "--epd-kv-lease-s",
    str(LEASE_S),
)


@pytest.fixture(scope="session")
def start_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], System]]:
    """Start a system, or hand out the one that runs if it is the same."""
    current: dict[tuple[str, str], System] = {}
    stack = ExitStack()

    def start(family: str, dtype: str) -> System:
        if (family, dtype) not in current:
            stack.close()
            current.clear()
            folder: Path = tmp_path_factory.mktemp(f"{family}-{dtype}")
            current[family, dtype] = stack.enter_context(running_system(family, dtype, TOPOLOGY, folder, *OPTIONS))
        return current[family, dtype]

    yield start
    stack.close()


@pytest.fixture
def system(start_system: Callable[[str, str], System]) -> System:
    """The system of the tests that need any one."""
    return start_system("qwen2.5-vl", "float32")
