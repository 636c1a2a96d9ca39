# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd profile` against a topology that really runs."""

import asyncio
from pathlib import Path

import pytest

from tests.engine.own_router import described, own_router
from tests.engine.system import MODEL, System
from vllm_epd.cli import main
from vllm_epd.planner.profile.store import load_profile

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOKENS_OFF = 0.1
"""Words of one request are of more or fewer tokens; that evens out over repeats, of which there is one here."""


@pytest.mark.parametrize("which", ["router", "single"])
async def test_what_runs_is_measured(system: System, which: str, tmp_path: Path):
    """One instance of each stage behind a router, and a stock server that never heard of roles."""
    chosen = [await described(system.instances(role)[0]) for role in ("encode", "prefill", "decode")]
    out = tmp_path / "profile.json"
    async with own_router(chosen) as router:
        url = router if which == "router" else system.single
        asked = ["profile", MODEL, "--url", url, "--out", str(out), "--repeats", "1"]
        assert await asyncio.to_thread(main, asked) == 0
    found = load_profile(out)
    # What images become is computed; the server counts the tokens of the prompts that they are in.
    assert found.fit["tokens"].worst < TOKENS_OFF
    assert found.memory.kv_per_token == 2 * 4 * 2 * 64 * 4
    assert found.encode.per_patch_s + found.encode.per_pair_s > 0
    for base in (found.prefill.base_s, found.decode.base_s, found.overhead.prefill_s):
        assert 1e-4 < base < 1
    assert bool(found.links) == (which == "router")
