# SPDX-License-Identifier: Apache-2.0
"""Whether it is worth it to disaggregate. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from vllm_epd.errors import ConfigError
from vllm_epd.planner.search.compare import Contender
from vllm_epd.planner.search.sought import Problem, Way

NOISE = 0.05
"""Goodputs that are no further apart are the same to a simulation."""
ERRORS = 2.0
"""Standard errors that they have to be apart, too."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which way, and why.

    Attributes:
        chosen: the way to run.
        pays: whether it is another than the baselines.
        text: for the user.
    """

    chosen: Way
    pays: bool
    text: str


def judge(problem: Problem, contenders: Sequence[Contender]) -> Verdict:
    """Choose the simplest way that nothing beats clearly.

    Raises:
        ConfigError: no contender keeps what is promised.
    """
    able = [each for each in contenders if each.enough]
    if not able:
        raise ConfigError(_none_able(problem, contenders))
    chosen, baselines = able[0], [each for each in able if each.way.baseline]
    for each in able[1:]:
        if all(_beats(each, rival) for rival in (chosen, *baselines) if rival is not each):
            chosen = each
    return Verdict(chosen.way, not chosen.way.baseline, _text(chosen, [each for each in able if each is not chosen]))


def _beats(one: Contender, other: Contender) -> bool:
    """Fewer GPUs, or with as many a higher goodput by more than chance."""
    if one.gpus != other.gpus:
        return one.gpus < other.gpus
    return one.goodput > other.goodput * (1 + max(NOISE, ERRORS * hypot(one.error, other.error)))


def _text(chosen: Contender, others: Sequence[Contender]) -> str:
    if chosen.way is Way.REPLICATED:
        opening = "Disaggregation does not pay"
    elif chosen.way is Way.PREFILL_DECODE:
        opening = "Apart from prefill, decode pays; to take the encoder apart, or to mix, does not"
    elif chosen.way is Way.CO_LOCATED:
        opening = "Disaggregation pays, with encoders that share GPUs with the language model"
    else:
        opening = "Disaggregation pays, with encoders on GPUs of their own"
    told = "; ".join(_against(chosen, each) for each in others)
    return f"{opening}: {_worth(chosen)}" + (f". In comparison: {told}." if told else ".")


def _worth(each: Contender) -> str:
    return f"{each.whole} ({each.way}) serves {each.goodput:.3g} requests/s on {_gpus(each.gpus)}"


def _against(chosen: Contender, each: Contender) -> str:
    if chosen.gpus != each.gpus:
        return f"{each.whole} ({each.way}) needs {_gpus(each.gpus)}"
    off = each.goodput / chosen.goodput - 1
    note = "" if _beats(chosen, each) else ", which a simulation cannot tell apart"
    return f"{each.whole} ({each.way}) {each.goodput:.3g} ({off:+.0%}{note})"


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _none_able(problem: Problem, contenders: Sequence[Contender]) -> str:
    slo = problem.slo
    promise = f"a TTFT of {slo.ttft_s:g} s and a TPOT of {slo.tpot_s:g} s for {slo.share:.0%} of the requests"
    looked = sum(each.looked for each in contenders)
    if problem.rate is None:
        return (
            f"no fleet keeps {promise} at any rate, of {looked} that were looked at; allow more time, or ask for less"
        )
    best = max(contenders, key=lambda each: each.goodput)
    return (
        f"{_gpus(problem.gpus)} cannot keep {promise} at {problem.rate:g} requests/s: the best of {looked} fleets,"
        f" {best.whole}, keeps it up to {best.goodput:.3g} requests/s, {problem.rate - best.goodput:.3g} too few"
    )
