# SPDX-License-Identifier: Apache-2.0
"""Other topologies than one of single roles: the same answers, and nothing left of them in the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.engine.system import MODEL, System, process, up_command, wait_for_fleet
from tests.engine.test_exactness import TOLERANCE, differences
from tests.engine.traffic import Json, ask_all, ask_in_turn, chat, image_part
from vllm_epd.demo import ensure_model, serve_args

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MARK = "EPD_TEST_MARK"
SHARED_MEMORY = Path("/dev/shm")


POOL_BYTES = 2**20
"""Room for four images of a request's; every instance is made to share so much among all of them."""


def requests() -> list[Json]:
    """Text, one image, two images, and more of them than a pool holds."""
    counts = [0, 1, 2, 2, 1, 2]
    return [
        chat([image_part(4000 + 10 * index + item) for item in range(count)], f"Describe {index}.")
        for index, count in enumerate(counts)
    ]


def marked(mark: str) -> list[str]:
    """The command lines of the processes whose environment has this mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def shared_memory() -> set[str]:
    """What lies in shared memory."""
    return {path.name for path in SHARED_MEMORY.iterdir()}


@contextmanager
def fleet(system: System, topology: str, folder: Path, mark: str, *options: str) -> Iterator[str]:
    """The router's URL of a topology with the weights of the system; `options` go to all its instances."""
    model = ensure_model(system.family)
    arguments = ["--served-model-name", MODEL, "--dtype", system.dtype, *serve_args(system.family)]
    arguments += ["--epd-pool-bytes", str(POOL_BYTES), *options]
    with process(up_command(model, topology, folder, arguments), folder / "up.log", {MARK: mark}) as child:
        yield wait_for_fleet(child, folder / "up.log")
    assert child.returncode == 0, (folder / "up.log").read_text(errors="replace")[-4000:]


@pytest.mark.parametrize("topology", ["1E1PD", "1EP1D", "1EPD"])
async def test_the_answers_are_those_of_a_single_server_and_nothing_is_left(
    system: System, tmp_path: Path, topology: str
) -> None:
    wanted = await ask_in_turn(system.single, requests())
    assert len({answer.tokens for answer in wanted}) == len(wanted)
    before, mark = shared_memory(), uuid4().hex
    with fleet(system, topology, tmp_path, mark) as router:
        assert len(marked(mark)) >= 2 + len(topology.replace("1", " ").split())
        answers = await ask_all(router, requests())
    failures = [differences(got, want, TOLERANCE[system.dtype]) for got, want in zip(answers, wanted, strict=True)]
    assert not any(failures), failures
    assert not marked(mark)
    assert not shared_memory() - before
