# SPDX-License-Identifier: Apache-2.0
"""Single requests through each topology, by times that are computed by hand."""

import re

import pytest

from tests.unit.planner.simulate.conftest import (
    BYTES_PER_S,
    CONTEXT_S,
    LATENCY_S,
    PREPROCESS_S,
    SEQUENCE_S,
    STEP_S,
    TILE_S,
    TILE_TOKENS,
    TOKEN_S,
)
from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.profile import Overhead
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.topology import Topology

TEXT, OUTPUT = 36, 5


def tiles(count, name=None):
    """An image of so many tiles."""
    return Item(Kind.IMAGE, 448 * count, 448, name=name)


def fleet(topology, **settings):
    return Fleet(Topology.parse(topology), **{"tier": "link", "kv_share": 0.5, **settings})


def request(*items, number=0, at=0.0, text=TEXT, output=OUTPUT):
    return Request(number, at, text, output, items)


def generation(prompt, tokens):
    """What `tokens` after the first take, one sequence alone."""
    return sum(STEP_S + SEQUENCE_S + CONTEXT_S * (prompt + done) for done in range(1, tokens))


def transfer(tokens):
    return LATENCY_S + tokens / BYTES_PER_S


ENCODE = PREPROCESS_S + TILE_S
PROMPT = TEXT + TILE_TOKENS
PREFILL = PROMPT * TOKEN_S
WAYS = {
    "EPD": (ENCODE + PREFILL, 0.0),
    "1E1PD": (ENCODE + transfer(TILE_TOKENS) + PREFILL, 0.0),
    "1EP1D": (ENCODE + PREFILL, transfer(PROMPT)),
    "1E1P1D": (ENCODE + transfer(TILE_TOKENS) + PREFILL, transfer(PROMPT)),
    "1ED1P": (ENCODE + transfer(TILE_TOKENS) + PREFILL, transfer(PROMPT)),
}


@pytest.mark.parametrize(("topology", "times"), WAYS.items())
def test_one_image_takes_what_its_way_takes(profile, topology, times):
    ttft, handed_over = times
    (served,) = simulate(fleet(topology), profile(), [request(tiles(1))]).served
    assert served.ttft_s == pytest.approx(ttft)
    assert served.done - served.first_token == pytest.approx(handed_over + generation(PROMPT, OUTPUT))


@pytest.mark.parametrize("topology", ["EPD", "1E1P1D", "1EP1D", "1P1D"])
def test_text_is_not_encoded(profile, topology):
    (served,) = simulate(fleet(topology), profile(), [request()]).served
    assert served.ttft_s == pytest.approx(TEXT * TOKEN_S)
    assert served.encoder is None


def test_the_instances_of_a_request_are_named(profile):
    (served,) = simulate(fleet("2E1P1D"), profile(), [request(tiles(1))]).served
    assert (served.encoder, served.prefill, served.decode) == ("E0", "P0", "D0")


def test_a_single_token_needs_no_decoder(profile):
    (served,) = simulate(fleet("1E1P1D"), profile(), [request(output=1)]).served
    assert served.done == served.first_token
    assert served.tpot_s == 0


def test_what_is_asked_of_an_instance_costs_processor_time(profile):
    overhead = Overhead(router_s=0.1, encode_s=0.01, prefill_s=0.02, decode_s=0.04)
    (plain,) = simulate(fleet("1E1P1D"), profile(), [request(tiles(1))]).served
    (asked,) = simulate(fleet("1E1P1D"), profile(overhead=overhead), [request(tiles(1))]).served
    assert asked.ttft_s - plain.ttft_s == pytest.approx(0.1 + 0.01 + 0.1 + 0.02)
    assert asked.done - plain.done == pytest.approx(0.23 + 0.1 + 0.04)


def test_an_instance_takes_up_one_call_after_the_other(profile):
    images = [tiles(1), tiles(1)]
    (plain,) = simulate(fleet("1E1PD"), profile(), [request(*images)]).served
    (asked,) = simulate(fleet("1E1PD"), profile(overhead=Overhead(encode_s=0.3)), [request(*images)]).served
    assert asked.ttft_s - plain.ttft_s == pytest.approx(2 * 0.3)


def test_items_are_shared_out_over_encoders(profile):
    images = [tiles(1) for _ in range(8)]
    alone = Limits(encode_items=1)
    times = {}
    for topology, spread in (("1E1P1D", True), ("4E1P1D", True), ("4E1P1D", False)):
        (served,) = simulate(fleet(topology, limits=alone, spread=spread), profile(), [request(*images)]).served
        times[topology, spread] = served.ttft_s
    after = transfer(8 * TILE_TOKENS) + (TEXT + 8 * TILE_TOKENS) * TOKEN_S
    assert times["1E1P1D", True] == times["4E1P1D", False] == pytest.approx(PREPROCESS_S + 8 * TILE_S + after)
    assert times["4E1P1D", True] == pytest.approx(PREPROCESS_S + 2 * TILE_S + after)


@pytest.mark.parametrize(("asked", "shards"), [(1, 1), (2, 2), (4, 4), (None, 1)])
def test_one_item_is_cut_as_far_as_asked_for(profile, asked, shards):
    (served,) = simulate(fleet("4E1P1D", irp_degree=asked), profile(), [request(tiles(4))]).served
    after = transfer(4 * TILE_TOKENS) + (TEXT + 4 * TILE_TOKENS) * TOKEN_S
    assert served.ttft_s == pytest.approx(PREPROCESS_S + 4 * TILE_S / shards + after)


def test_a_worker_that_preprocesses_does_nothing_else(profile):
    images = [tiles(1), tiles(1)]
    beside = simulate(fleet("1E1PD", preprocess_workers=2), profile(), [request(*images)]).served[0]
    inside = simulate(fleet("1E1PD", workers_preprocess=True), profile(), [request(*images)]).served[0]
    assert inside.ttft_s - beside.ttft_s == pytest.approx(PREPROCESS_S)


def test_preprocessing_takes_turns_in_one_process(profile):
    images = [tiles(1), tiles(1)]
    one, two = (
        simulate(fleet("1E1PD", preprocess_workers=each), profile(), [request(*images)]).served[0] for each in (1, 2)
    )
    # The first of two is encoded while the second is preprocessed.
    assert (one.ttft_s - two.ttft_s) == pytest.approx(0.0)
    assert one.ttft_s == pytest.approx(PREPROCESS_S + 2 * TILE_S + transfer(2 * TILE_TOKENS) + (TEXT + 128) * TOKEN_S)


def test_all_media_of_a_call_is_preprocessed_before_any_of_it_is_encoded(profile):
    images = [tiles(1), tiles(1)]
    (served,) = simulate(fleet("EPD"), profile(), [request(*images)]).served
    assert served.ttft_s == pytest.approx(2 * PREPROCESS_S + 2 * TILE_S + (TEXT + 2 * TILE_TOKENS) * TOKEN_S)


def test_what_an_encoder_still_holds_is_not_encoded_again(profile):
    requests = [request(tiles(1, name=7), number=number, at=10.0 * number) for number in range(2)]
    first, again = simulate(fleet("2E1PD"), profile(), requests).served
    assert first.encoder == again.encoder
    assert again.ttft_s == pytest.approx(first.ttft_s - ENCODE)


def test_prompts_are_computed_in_chunks_beside_generation(profile):
    limits = Limits(batched_tokens=101)
    requests = [request(output=50), request(number=1, at=0.04, text=300, output=1)]
    chunked, whole = (
        simulate(fleet("PD", limits=limits, chunked=each), profile(), requests).served for each in (True, False)
    )
    # One step under way, then steps of 100, 100 and 100 tokens with a token for the other sequence in each.
    step = STEP_S + SEQUENCE_S + CONTEXT_S * (TEXT + 1)
    begun = 0.036 + step
    assert chunked[1].first_token == pytest.approx(begun + 0.3 + 3 * step, rel=1e-3)
    assert whole[1].first_token == pytest.approx(begun + 0.3, rel=1e-3)
    assert whole[0].done == pytest.approx(chunked[0].done)


def test_instances_without_devices_of_their_own_share_cores(profile):
    def shared(cores):
        hardware = profile().hardware
        cpu = profile(hardware=type(hardware)("cpu", "cpu", hardware.memory_bytes, cores))
        requests = [request(number=number, text=1000, output=1) for number in range(2)]
        return [each.ttft_s for each in simulate(fleet("2PD"), cpu, requests).served]

    assert shared(2) == pytest.approx([1.0, 1.0])
    assert shared(1) == pytest.approx([2.0, 2.0])


REFUSED = {
    "too long for the model": ("EPD", request(text=99_990, output=20), "100010 tokens .* the 100000 that the model"),
    "too long for a cache": ("1P1D", request(text=9_000), "9005 tokens do not fit a KV cache, .* for 4000"),
    "media for nobody": ("1P1D", request(tiles(1)), "no instance encodes"),
    "media without room": ("1E1PD", request(*(tiles(4) for _ in range(9))), "embeddings of 2304 tokens do not fit"),
}


@pytest.mark.parametrize(("topology", "asked", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_nobody_could_ever_serve_is_refused(profile, topology, asked, why):
    small = profile(hardware=type(profile().hardware)("card", "cuda", 10_000, 4))
    memory = {"kv_share": 0.5, "memory_share": 1.0}
    following = request(number=1, at=1.0)
    if topology == "EPD":
        small = profile()
    outcome = simulate(fleet(topology, **memory), small, [asked, following])
    ((number, reason),) = [(each.number, each.why) for each in outcome.refused]
    assert number == 0
    assert re.search(why, reason), reason
    assert [each.number for each in outcome.served] == [1]


def test_a_link_that_there_is_not_is_refused(profile):
    with pytest.raises(ConfigError, match="no link 'wire'; it has link, none"):
        simulate(fleet("EPD", tier="wire"), profile(), [])


def test_what_is_being_made_for_one_request_is_waited_for_by_another(profile):
    requests = [request(tiles(1, name=7), number=number, at=0.5 * number, output=1) for number in range(2)]
    outcome = simulate(fleet("2E1PD", tier="none"), profile(), requests)
    first, waiting = outcome.served
    assert sum(use.by_stage.get("encode", 0.0) for use in outcome.uses) == pytest.approx(TILE_S)
    assert first.ttft_s == pytest.approx(ENCODE + PREFILL)
    assert waiting.first_token == pytest.approx(ENCODE + 2 * PREFILL)


def test_one_instance_makes_a_medium_once_for_all_that_have_it(profile):
    requests = [request(tiles(1, name=7), number=number, at=0.5 * number, output=1) for number in range(3)]
    outcome = simulate(fleet("EPD"), profile(), requests)
    assert outcome.uses[0].by_stage["encode"] == pytest.approx(TILE_S)
    # The others' prompts are known to have their embedding when the step is over that makes it.
    assert [each.first_token for each in outcome.served] == pytest.approx(
        [ENCODE + PREFILL, ENCODE + 3 * PREFILL, ENCODE + 3 * PREFILL]
    )


def test_a_medium_that_a_request_has_twice_is_encoded_once_and_is_twice_in_the_prompt(profile):
    (served,) = simulate(fleet("EPD"), profile(), [request(tiles(1, name=7), tiles(1, name=7))]).served
    assert served.ttft_s == pytest.approx(ENCODE + (TEXT + 2 * TILE_TOKENS) * TOKEN_S)


def small(profile, memory_bytes):
    return profile(hardware=type(profile().hardware)("card", "cuda", memory_bytes, 4))


def test_p_has_a_kv_cache_until_d_has_fetched_it(profile):
    """P has room for one prompt: the second one waits for the transfer of the first one, not only for its prefill."""
    tight = {"memory_share": 1.0, "kv_share": 0.5}
    requests = [request(number=number, text=300, output=2) for number in range(2)]
    outcome = simulate(fleet("1P4D", **tight), small(profile, 2800), requests)
    first, second = outcome.served
    assert first.first_token == pytest.approx(0.3)
    assert second.first_token == pytest.approx(0.3 + transfer(300) + 0.3)
    assert outcome.uses[0].peak_kv_tokens == 300 <= outcome.uses[0].kv_tokens == 400


def test_a_decoder_is_chosen_with_p_or_once_the_prompt_is_prefilled(profile):
    limits = Limits(decode_sequences=1)
    requests = [request(number=number, output=100) for number in range(2)]
    paired, pulled = (
        simulate(fleet("1P1D", limits=limits, tier="none", pulls=each), profile(), requests).served
        for each in (False, True)
    )
    generating = generation(TEXT, 100)
    done = TEXT * TOKEN_S + generating
    assert paired[0].done == pytest.approx(done)
    assert paired[1].first_token == pytest.approx(done + TEXT * TOKEN_S)
    assert pulled[1].first_token == pytest.approx(2 * TEXT * TOKEN_S)
    assert [each.done for each in pulled] == pytest.approx([done, done + generating])


@pytest.mark.parametrize(("pulls", "tokens"), [(False, 20), (True, 120)])
def test_of_a_kv_cache_that_travels_in_chunks_only_the_last_one_is_waited_for(profile, pulls, tokens):
    limits = Limits(batched_tokens=50)
    (served,) = simulate(
        fleet("1P1D", limits=limits, pulls=pulls), profile(), [request(text=120, output=OUTPUT)]
    ).served
    assert served.done - served.first_token == pytest.approx(transfer(tokens) + generation(120, OUTPUT))


@pytest.mark.parametrize(("cores", "slower"), [(4, 1.0), (1, 1.5)])
def test_tokens_are_sent_out_beside_the_next_step(profile, cores, slower):
    hardware = type(profile().hardware)("cpu", "cpu", 1_000_000, cores)
    flat = type(profile().decode)(base_s=0.01, per_sequence_s=0.0, per_context_s=0.0)
    model = profile(hardware=hardware, decode=flat, overhead=Overhead(token_s=0.005))
    (served,) = simulate(fleet("PD"), model, [request(output=101)]).served
    assert served.done - served.first_token == pytest.approx(100 * 0.01 * slower)


ALSO_REFUSED = {
    "too much working memory": ("EPD", {}, request(tiles(4)), "an item of 4096 patches .* takes 2240"),
    "a whole prompt": ("EPD", {"chunked": False}, request(text=2300), "a prompt of 2300 tokens .* takes 2240"),
}


@pytest.mark.parametrize(("topology", "settings", "asked", "why"), ALSO_REFUSED.values(), ids=ALSO_REFUSED.keys())
def test_what_does_not_fit_beside_the_caches_is_refused(profile, topology, settings, asked, why):
    memory = {"kv_share": 0.6, "memory_share": 1.0}
    outcome = simulate(fleet(topology, **memory, **settings), small(profile, 10_000), [asked])
    (refused,) = outcome.refused
    assert re.search(why, refused.why), refused.why


def test_a_decoder_that_pulls_holds_up_no_prompt(profile):
    limits = Limits(prefill_sequences=1, decode_sequences=1)
    asked = [request(number=number, text=100, output=OUTPUT) for number in range(4)]
    pulling, reserving = (
        simulate(fleet("1P1D", limits=limits, pulls=pulls), profile(), asked) for pulls in (True, False)
    )
    answer = transfer(100) + generation(100, OUTPUT)
    for outcome in (pulling, reserving):
        assert [each.done for each in outcome.served] == pytest.approx(
            [
                0.1 + answer * (number + 1) if outcome is pulling else (0.1 + answer) * (number + 1)
                for number in range(4)
            ]
        )
    assert [each.first_token for each in pulling.served] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert pulling.uses[0].peak_kv_tokens == 400


def test_a_single_token_is_not_pulled(profile):
    (served,) = simulate(fleet("1P1D", pulls=True), profile(), [request(output=1)]).served
    assert served.done == served.first_token
    assert (served.prefill, served.decode) == ("P0", "P0")


@pytest.mark.parametrize(("device", "slower"), [("cpu", 1.0), ("cuda", 0.0)])
def test_what_is_done_beside_a_request_takes_cores_from_devices_that_are_cores(profile, device, slower):
    """One second of work beside, on one core that the prompt needs too."""
    model = profile(hardware=type(profile().hardware)(device, device, 1_000_000, 1), overhead=Overhead(beside_s=1.0))
    (served,) = simulate(fleet("PD"), model, [request(text=1000, output=1)]).served
    assert served.ttft_s == pytest.approx(1.0 + slower)


def test_an_instance_that_encodes_for_itself_is_asked_once(profile):
    overhead = Overhead(encode_s=0.5, prefill_s=0.1)
    images = [tiles(1), tiles(1)]
    plain, asked = (
        simulate(fleet("EPD"), profile(overhead=each), [request(*images)]).served[0] for each in (Overhead(), overhead)
    )
    assert asked.ttft_s - plain.ttft_s == pytest.approx(0.1)
