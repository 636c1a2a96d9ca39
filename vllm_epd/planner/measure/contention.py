# SPDX-License-Identifier: Apache-2.0
"""How much engines on the cores of one host slow each other down. Pure.

One answer is generated on its own, and once more while another instance prefills one prompt after the other. The cores
are shared as the simulator shares them (`simulate/events.py`); what both take longer than that is contention. Of the
window in which tokens come, W, the prefill instance is at work for B, and while both are, each does

    rate / (1 + contention),    rate = min(1, cores / (2 + what API servers, router and client use of a core))

of what it does alone; in the rest the answer goes on alone. With what both have done, in seconds on their own, that is

    done = (W - B) + 2 B rate / (1 + contention)
"""

from dataclasses import replace
from statistics import median

from vllm_epd.planner.measure.samples import LEAST_S, Measured, Sample, step_s
from vllm_epd.planner.profile.costs import prefill_pairs, prefill_s
from vllm_epd.planner.profile.profile import PrefillCost
from vllm_epd.types import Role


def contention(measured: Measured, prefill: PrefillCost, cores: int) -> float:
    """The share by which steps take longer beside those of another engine; 0 if it was not measured, or is not seen."""
    beside = [sample for sample in measured.samples if len(sample.answers) > 1 and sample.series == "contended"]
    if not beside:
        return 0.0
    alone = [seconds for _, seconds in measured.medians("alone", _pace)]
    if not alone:
        return 0.0
    words = beside[0].shots[1].words
    prompt_s = next(
        seconds
        for sample, seconds in measured.medians("text", lambda each: each.meters[Role.PREFILL].prefill_s)
        if sample.shots[0].words == words
    )
    return max(0.0, median(_of(sample, prefill, cores, alone[0], prompt_s) for sample in beside))


def _of(sample: Sample, prefill: PrefillCost, cores: int, alone_s: float, prompt_s: float) -> float:
    answer, *prompts = sample.answers
    window_s = answer.moments[-1] - answer.moments[1]
    steps = window_s / (_pace(sample) or alone_s)
    meters, tokens = sample.meters[Role.PREFILL], answer.prompt_tokens
    busy_s = max(LEAST_S, meters.prefill_s - prefill_s(prefill, tokens, prefill_pairs(tokens, 0)))
    # The last prompt goes on alone once the answer is complete.
    tail_s = min(busy_s / len(prompts), max(0.0, prompts[-1].moments[0] - answer.moments[-1]))
    both_s = min(window_s, busy_s - tail_s)
    done_s = steps * alone_s + len(prompts) * prompt_s * (1 - tail_s / busy_s)
    used_s = meters.front_s + sample.meters[Role.DECODE].front_s + sample.router_s + sample.client_s
    rate = min(1.0, cores / (2 + used_s / window_s))
    return 2 * both_s * rate / max(LEAST_S, done_s - (window_s - both_s)) - 1


def _pace(sample: Sample) -> float | None:
    """Seconds between tokens of the answer that goes on, whatever is beside it."""
    return step_s(replace(sample, shots=sample.shots[:1], answers=sample.answers[:1]), apart=True)
