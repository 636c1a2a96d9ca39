# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.compare import Contender
from vllm_epd.planner.search.objective import Score, Slo
from vllm_epd.planner.search.search import Trial
from vllm_epd.planner.search.sought import Way
from vllm_epd.planner.search.verdict import judge
from vllm_epd.topology import Topology

PROBLEM = SimpleNamespace(slo=Slo(1.0, 0.05), rate=None, gpus=8)
TOPOLOGIES = {
    Way.REPLICATED: "8EPD",
    Way.PREFILL_DECODE: "6EP2D",
    Way.CO_LOCATED: "4EPD4PD",
    Way.ENCODE_APART: "4E2P2D",
}


def _contenders(*goodputs, error=0.0, topologies=TOPOLOGIES):
    return [
        Contender(
            way=way,
            best=Trial(Fleet(Topology.parse(topology)), Score(goodput, goodput, 0.9)),
            whole=Topology.parse(topology),
            goodput=goodput,
            error=error,
            attainment=None,
            enough=goodput > 0,
            looked=10,
            others=(),
        )
        for (way, topology), goodput in zip(topologies.items(), goodputs, strict=True)
    ]


@pytest.mark.parametrize(
    ("goodputs", "chosen", "opening"),
    [
        (
            (10, 8, 9, 5),
            Way.REPLICATED,
            "Disaggregation does not pay: 8EPD (replicated) serves 10 requests/s on 8 GPUs.",
        ),
        ((10, 10.4, 10.4, 10.4), Way.REPLICATED, "Disaggregation does not pay"),
        ((10, 11, 11.2, 9), Way.PREFILL_DECODE, "Apart from prefill, decode pays"),
        ((10, 8, 11, 11.3), Way.CO_LOCATED, "Disaggregation pays, with encoders that share GPUs"),
        ((10, 8, 11, 12), Way.ENCODE_APART, "Disaggregation pays, with encoders on GPUs of their own"),
        # Nobody is chosen for being ahead of a baseline that another one is not ahead of.
        ((10, 10.4, 10.8, 9), Way.REPLICATED, "Disaggregation does not pay"),
        ((10, 8, 10.3, 10.6), Way.ENCODE_APART, "Disaggregation pays, with encoders on GPUs of their own"),
        ((0, 0, 0, 3), Way.ENCODE_APART, "Disaggregation pays, with encoders on GPUs of their own"),
    ],
)
def test_the_simplest_way_that_nothing_beats(goodputs, chosen, opening):
    verdict = judge(PROBLEM, _contenders(*goodputs))
    assert verdict.chosen is chosen
    assert verdict.text.startswith(opening)
    assert verdict.pays is not chosen.baseline


def test_what_errors_could_explain_decides_nothing():
    assert judge(PROBLEM, _contenders(10, 8, 9, 11.5)).chosen is Way.ENCODE_APART
    assert judge(PROBLEM, _contenders(10, 8, 9, 11.5, error=0.06)).chosen is Way.REPLICATED


def test_comparison_is_told():
    text = judge(PROBLEM, _contenders(10, 9.8, 8, 5)).text
    assert "6EP2D (prefill-decode) 9.8 (-2%, which a simulation cannot tell apart)" in text
    assert "4EPD4PD (co-located) 8 (-20%)" in text


def test_fewer_gpus_are_better_whatever_the_goodput():
    topologies = {**TOPOLOGIES, Way.ENCODE_APART: "1E1P1D"}
    verdict = judge(PROBLEM, _contenders(10, 9, 8, 5, topologies=topologies))
    assert verdict.chosen is Way.ENCODE_APART
    assert "8EPD (replicated) needs 8 GPUs" in verdict.text


def test_promises_that_nobody_keeps_are_refused():
    with pytest.raises(
        ConfigError, match="no fleet keeps a TTFT of 1 s and a TPOT of 0.05 s for 90% .* of 40 that were looked at"
    ):
        judge(PROBLEM, _contenders(0, 0, 0, 0))
