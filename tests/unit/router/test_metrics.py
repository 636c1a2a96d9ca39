# SPDX-License-Identifier: Apache-2.0
"""The numbers by which an operator sees whether clients are served in time, and what is in the way."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.router.conftest import answers_after, hold, image, soon
from tests.unit.router.test_first_token import D, P
from vllm_epd.router.breaker import FAILURES

SLO = "X-Request-TTFT-SLO-Ms"
ATTAINED = 'slo_requests_total{attained="true",slo="ttft"}'
MISSED = 'slo_requests_total{attained="false",slo="ttft"}'


async def stream(cluster, clock, *fakes, target_ms=None, content="words", **fields):
    """A stream whose first instance takes a second, the next one two, and so on."""
    hold(*fakes)
    headers = {} if target_ms is None else {SLO: str(target_ms)}
    task = asyncio.create_task(cluster.chat(content, stream=True, headers=headers, **fields))
    for index, fake in enumerate(fakes):
        await answers_after(clock, fake, 2.0**index)
    return await task


async def test_names_and_types_are_those_of_prometheus(cluster):
    await cluster.up("E", "P", "D")
    await cluster.chat([image("cat")], stream=True, headers={SLO: "1000"})
    shown = (await cluster.call("GET", "/metrics")).raw.decode()
    families = {each.name: each for each in text_string_to_metric_families(shown)}
    assert all(name.startswith(("vllm_epd_router_", "process_")) for name in families)
    assert families["process_cpu_seconds"].type == "counter"
    assert all(each.documentation for each in families.values())
    for name, kind in {
        "time_to_first_token_seconds": "histogram",
        "e2e_request_latency_seconds": "histogram",
        "request_time_per_output_token_seconds": "histogram",
        "stage_seconds": "histogram",
        "waited_seconds": "histogram",
        "slo_stage_share": "histogram",
        "slo_requests": "counter",
        "slo_misses": "counter",
        "failed_requests": "counter",
        "prefix_cache_queries": "counter",
        "prefix_cache_hits": "counter",
        "out_of_service": "gauge",
        "parted_pairs": "gauge",
    }.items():
        assert families[f"vllm_epd_router_{name}"].type == kind


async def test_latencies_are_what_the_client_sees(cluster, clock):
    await stream(cluster, clock, *await cluster.up("P", "D"))
    assert await cluster.metric("time_to_first_token_seconds_sum") == 3.0
    assert await cluster.metric("e2e_request_latency_seconds_sum") == 3.0


async def test_a_whole_answer_has_no_first_token(cluster):
    await cluster.up("P", "D")
    await cluster.chat("words", headers={SLO: "1000"})
    assert await cluster.metric("time_to_first_token_seconds_count") == 0
    assert await cluster.metric("e2e_request_latency_seconds_count") == 1
    assert await cluster.metric(ATTAINED) == 0


async def test_the_time_of_a_token_where_the_router_follows_them(cluster, clock):
    prefill, decode = await cluster.add("P", **P), await cluster.add("D", **D)
    answer = await stream(cluster, clock, prefill, decode, stream_options={"include_usage": True})
    tokens = answer.events[-1]["usage"]["completion_tokens"]
    assert await cluster.metric("time_to_first_token_seconds_sum") == 1.0
    assert await cluster.metric("request_time_per_output_token_seconds_sum") == pytest.approx(2.0 / (tokens - 1))


async def test_a_target_that_is_met(cluster, clock):
    fakes = await cluster.up("P", "D")
    await stream(cluster, clock, *fakes, target_ms=4000)
    assert (await cluster.metric(ATTAINED), await cluster.metric(MISSED)) == (1, 0)
    shares = [
        await cluster.metric(f'slo_stage_share_sum{{slo="ttft",stage="{stage}"}}') for stage in ("prefill", "decode")
    ]
    assert shares == [0.25, 0.5]
    assert await cluster.metric('slo_stage_share_count{slo="ttft",stage="encode"}') == 0


async def test_a_target_that_is_missed_names_the_costliest_stage(cluster, clock):
    fakes = await cluster.up("E", "P", "D")
    await stream(cluster, clock, *fakes[:2], target_ms=1000, content=[image("cat")])
    assert (await cluster.metric(ATTAINED), await cluster.metric(MISSED)) == (0, 1)
    assert await cluster.metric('slo_misses_total{slo="ttft",stage="prefill"}') == 1


async def test_waiting_can_be_the_costliest(cluster, clock):
    whole = await cluster.add("EPD", limits={"max_num_seqs": 1})
    hold(whole)
    first = asyncio.create_task(cluster.chat("first"))
    await whole.arrived.wait()
    second = asyncio.create_task(cluster.chat("second", stream=True, headers={SLO: "1000"}))
    while not await cluster.metric('waiting{stage="prefill"}'):
        await asyncio.sleep(0.001)
    await answers_after(clock, whole, 2.0)
    await asyncio.gather(first, second)
    assert await cluster.metric('slo_misses_total{slo="ttft",stage="prefill_queue"}') == 1
    assert await cluster.metric('slo_stage_share_sum{slo="ttft",stage="prefill_queue"}') == 2.0


@pytest.mark.parametrize(("status", "missed"), [(500, 1), (429, 1), (400, 0)])
async def test_a_stream_that_never_begins_has_missed_unless_it_was_at_fault(cluster, status, missed):
    (whole,) = await cluster.up("EPD")
    whole.does.status = status
    assert (await cluster.chat("words", stream=True, headers={SLO: "1000"})).status == status
    assert await cluster.metric(MISSED) == missed
    assert await cluster.metric('slo_misses_total{slo="ttft",stage="failed"}') == missed
    assert await cluster.metric('failed_requests_total{reason="UpstreamError"}') == 1
    assert await cluster.metric("e2e_request_latency_seconds_count") == 0


@pytest.mark.parametrize(("after_s", "missed"), [(0.5, 0), (1.5, 1)])
async def test_a_client_that_leaves_has_missed_its_target_if_that_was_over(cluster, clock, after_s, missed):
    (whole,) = await cluster.up("EPD")
    hold(whole)
    task = asyncio.create_task(cluster.chat("words", stream=True, headers={SLO: "1000"}))
    await whole.arrived.wait()
    clock.now += after_s
    task.cancel()
    await soon(lambda: whole.seen[0].outcome == "aborted")
    assert await cluster.metric('requests_total{route="/v1/chat/completions",status="499"}') == 1
    assert await cluster.metric(MISSED) == missed


async def test_refusals_are_told_apart(cluster_with):
    async with cluster_with(max_queue=1) as cluster:
        await cluster.chat("words")
        whole = await cluster.add("EPD", limits={"max_num_seqs": 1})
        hold(whole)
        asked = [asyncio.create_task(cluster.chat("words")) for _ in range(2)]
        while not await cluster.metric('waiting{stage="prefill"}'):
            await asyncio.sleep(0.001)
        assert (await cluster.chat("words")).status == 429
        whole.does.hold.set()
        await asyncio.gather(*asked)
        for reason in ("NoInstanceError", "QueueFullError"):
            assert await cluster.metric(f'failed_requests_total{{reason="{reason}"}}') == 1


async def test_instances_that_are_out_of_service(cluster):
    broken, refusing, well = await cluster.up("EPD", "EPD", "EPD")
    for _ in range(FAILURES):
        cluster.instance(broken).breaker.failed()
    cluster.registry.suspend(cluster.instance(refusing))
    shown = (await cluster.call("GET", "/metrics")).raw.decode()
    assert f'out_of_service{{instance="{broken.instance_id}",reason="breaker"}} 1.0' in shown
    assert f'out_of_service{{instance="{refusing.instance_id}",reason="unreachable"}} 1.0' in shown
    assert f'out_of_service{{instance="{well.instance_id}"' not in shown
    await cluster.register(refusing)
    assert 'reason="unreachable"' not in (await cluster.call("GET", "/metrics")).raw.decode()


async def test_pairs_that_are_parted(cluster):
    prefill, decode = await cluster.up("P", "D")
    decode.does.status = 500
    for _ in range(FAILURES):
        await cluster.chat("words")
    assert await cluster.metric("parted_pairs") == 1
    assert len(prefill.seen) >= FAILURES


async def test_beginnings_that_a_prefill_instance_has_had(cluster_with):
    async with cluster_with(prefill_policy="cache_aware") as cluster:
        await cluster.up("P", "P", "D")
        words = "the same beginning " * 300
        await cluster.chat(words + "one end")
        asked = await cluster.metric("prefix_cache_queries_total")
        assert asked >= 1000
        assert await cluster.metric("prefix_cache_hits_total") == 0
        await cluster.chat(words + "another end")
        assert await cluster.metric("prefix_cache_queries_total") == 2 * asked
        assert 1000 <= await cluster.metric("prefix_cache_hits_total") <= asked
