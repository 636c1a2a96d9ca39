# SPDX-License-Identifier: Apache-2.0
"""What the router says of itself."""

import dataclasses

import pytest

from tests.fakes.instance import FINGERPRINT
from tests.unit.router.conftest import image
from vllm_epd import __version__


async def test_models_are_those_of_the_language_models_each_once(cluster):
    await cluster.add("E", models=("tiny", "encoder only"))
    await cluster.add("P", models=("tiny", "adapter"), limits={"max_model_len": 64})
    await cluster.add("D", models=("tiny", "adapter"))
    answer = await cluster.call("GET", "/v1/models")
    assert answer.json["object"] == "list"
    cards = {card["id"]: card for card in answer.json["data"]}
    assert list(cards) == ["tiny", "adapter"]
    assert (cards["tiny"]["parent"], cards["tiny"]["max_model_len"]) == (None, 64)
    assert cards["adapter"]["parent"] == "tiny"


async def test_health_does_not_depend_on_instances(cluster):
    answer = await cluster.call("GET", "/health")
    assert (answer.status, answer.json["stages"]) == (200, {"encode": 0, "prefill": 0, "decode": 0})
    await cluster.up("E", "E", "PD")
    answer = await cluster.call("GET", "/health")
    assert (answer.status, answer.json["stages"]) == (200, {"encode": 2, "prefill": 1, "decode": 1})


@pytest.mark.parametrize(
    ("letters", "missing"),
    [
        ((), ["encode", "prefill", "decode"]),
        (("E",), ["prefill", "decode"]),
        (("P", "D"), ["encode"]),
        (("E", "PD"), []),
        (("EPD",), []),
    ],
)
async def test_ready_when_every_stage_can_be_served(cluster, letters, missing):
    await cluster.up(*letters)
    answer = await cluster.call("GET", "/ready")
    assert answer.status == (503 if missing else 200)
    assert answer.json.get("missing", []) == missing
    if missing:
        assert all(f"no {name}" in answer.error["message"] for name in missing)


async def test_stages_of_two_fingerprints_are_not_ready(cluster):
    await cluster.up("P", "D")
    await cluster.add("E", fingerprint=dataclasses.replace(FINGERPRINT, weights="w1"))
    answer = await cluster.call("GET", "/ready")
    assert (answer.status, answer.json["missing"]) == (503, ["encode"])


async def test_kv_caches_that_nobody_takes_over_are_not_ready(cluster):
    await cluster.add("E")
    await cluster.add("P", kv="epd", kv_shards=2)
    await cluster.add("D", kv="epd")
    answer = await cluster.call("GET", "/ready")
    assert (answer.status, answer.json["missing"]) == (503, [])
    assert "tensor-parallel size is 2, that of" in answer.error["message"]
    await cluster.add("D", kv="epd", kv_shards=2)
    assert (await cluster.call("GET", "/ready")).status == 200


async def test_version(cluster):
    assert (await cluster.call("GET", "/version")).json == {"version": __version__}


async def test_metrics_tell_routes_stages_and_instances(cluster):
    encode, _, _ = await cluster.up("E", "P", "D")
    await cluster.chat([image("cat")])
    await cluster.chat("text", model="other")
    await cluster.call("GET", "/nowhere/else")
    answer = await cluster.call("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    shown = answer.raw.decode()
    for line in (
        'vllm_epd_router_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        'vllm_epd_router_requests_total{route="/v1/chat/completions",status="404"} 1.0',
        'vllm_epd_router_requests_total{route="/epd/instances",status="200"} 3.0',
        'vllm_epd_router_requests_total{route="other",status="404"} 1.0',
        'vllm_epd_router_stage_seconds_count{stage="encode"} 1.0',
        'vllm_epd_router_stage_seconds_count{stage="prefill"} 1.0',
        'vllm_epd_router_stage_seconds_count{stage="decode"} 1.0',
        'vllm_epd_router_instances{role="encode"} 1.0',
        f'vllm_epd_router_outstanding{{instance="{encode.instance_id}"}} 0.0',
    ):
        assert line in shown


async def test_a_stage_that_is_skipped_is_not_measured(cluster):
    await cluster.up("E", "P", "D")
    await cluster.chat("text")
    assert await cluster.metric('stage_seconds_count{stage="encode"}') == 0
    assert await cluster.metric('stage_seconds_count{stage="prefill"}') == 1
