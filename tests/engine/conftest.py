# SPDX-License-Identifier: Apache-2.0
"""One real system at a time, kept for all tests that want the same one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from tests.engine.system import System, running_system  # noqa: E402
from vllm_epd.demo import FAMILIES  # noqa: E402

TOPOLOGY = "2E1P1D"
LEASE_S = 10
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engine tests first, those of one system together: starting one takes longer than most tests."""
    items.sort(key=_system_of)


def _system_of(item: pytest.Item) -> tuple[int, bool, int]:
    if Path(__file__).parent not in item.path.parents:
        return (2, False, 0)
    family = getattr(item, "callspec", None) and item.callspec.params.get("family")  # type: ignore[attr-defined]
    return (0, False, 0) if family is None else (1, "bfloat16" in item.name, FAMILIES.index(family))
