# SPDX-License-Identifier: Apache-2.0
"""The options of `vllm-epd profile`, `simulate` and `plan`."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.router.ordering import ORDERS
from vllm_epd.router.policies import POLICIES
from vllm_epd.topology import Topology
from vllm_epd.types import Role

SIMULATE_EXAMPLES = """\
examples:
  vllm-epd simulate --profile internvl2-8b@h100 --topology 5E2P1D --rate 2 --images 4 --image-size 4032x3024
  vllm-epd simulate --profile my.json --topology 2E1PD --workload access.log --slo-ttft 2 --slo-tpot 0.05

a profile is a file, or a ready one: a wrong name lists them. a workload is a YAML file, a trace, the access log of a
router, or a result of `vllm bench serve`.
"""

PLAN_EXAMPLES = """\
examples:
  vllm-epd plan --profile internvl2-8b@h100 --workload traffic.yaml --gpus 8 --slo-ttft 2.4 --slo-tpot 0.06
  vllm-epd plan --profile internvl2-8b@h100 --images 4 --objective cost --rate 3 --gpus 16 \\
    --slo-ttft 2.4 --slo-tpot 0.06

the report says first whether disaggregation pays. --trials N without --time-limit gives the same plan each time.
"""


def add_profile(commands: Any, run: Any) -> None:
    """Offer `profile`."""
    parser = commands.add_parser(
        "profile",
        help="measure what a model costs where it runs",
        description="Drive a running router or server over its API, fit what each stage costs, and write that as a"
        " profile for the planner. Nothing else may use the instances meanwhile.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="its name as it is served, or the folder that it is served from")
    add("--url", required=True, help="of a router or server, such as http://127.0.0.1:8000")
    add("--out", metavar="FILE", type=Path, required=True, help="file of the profile, JSON")
    add("--folder", type=Path, help="folder of the model's files (default: where the instances have it from)")
    add("--tier", metavar="NAME", help="of the links between the instances (default: shm on CPUs, otherwise cuda_ipc)")
    add("--whole", metavar="FILE", type=Path, help="profile of the same model where one instance prefills and decodes")
    add("--repeats", metavar="N", type=int, help="of each request (default: 7)")
    add(
        "--seed", metavar="N", type=int, help="of what is sent (default: new each time, unknown to the servers' caches)"
    )
    parser.set_defaults(run=run)


def add_simulate(commands: Any, run: Any) -> None:
    """Offer `simulate`."""
    parser = commands.add_parser(
        "simulate",
        help="say how a topology would do, by a simulation",
        description="Simulate a topology under a workload: times, throughput, and what each instance is used for.",
        epilog=SIMULATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--topology", metavar="TEXT", required=True, help="such as 2E1PD")
    _add_given(parser)
    add("--slo-ttft", metavar="S", type=float, help="how soon a first token should come")
    add("--slo-tpot", metavar="S", type=float, help="how soon each further token should come, in the mean")
    for limit in fields(Limits):
        flag = "--" + limit.name.replace("_", "-")
        add(flag, metavar="N", type=int, dest=limit.name, help=f"at once, for an instance (default: {limit.default})")
    for stage in Role:
        add(f"--{stage}-policy", choices=sorted(POLICIES), help=f"who serves {stage}")
        add(f"--{stage}-order", choices=sorted(ORDERS), help=f"who is next for {stage}")
    add("--irp-degree", metavar="auto|N", help="as how many shards a large item is encoded (default: auto)")
    add("--json", action="store_true", help="numbers in the place of tables")
    add("--trace", metavar="FILE", type=Path, help="write what instances do when, for chrome://tracing and Perfetto")
    parser.set_defaults(run=run)


def add_plan(commands: Any, run: Any) -> None:
    """Offer `plan`."""
    parser = commands.add_parser(
        "plan",
        help="find the topology for a workload, and whether it is worth it",
        description="Search for the topology and the limits that serve a workload best, compare them with plain"
        " replicas and with prefill-decode disaggregation, and say how to run them.",
        epilog=PLAN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    _add_given(parser)
    add("--gpus", metavar="N", type=int, required=True, help="that there are")
    add("--slo-ttft", metavar="S", type=float, required=True, help="how soon a first token has to come")
    add("--slo-tpot", metavar="S", type=float, required=True, help="how soon each further token, in the mean")
    add("--slo-share", metavar="X", type=float, default=0.9, help="of the requests have both (default: 0.9)")
    add("--objective", choices=("goodput", "cost"), default="goodput", help="cost: the fewest GPUs at the rate")
    add("--time-limit", metavar="S", type=float, help="default: 120; 600 for more than a cell of GPUs")
    add("--trials", metavar="N", type=int, help="fleets to look at, at most")
    add("--model", metavar="NAME", help="of `vllm serve`, for the command to run (default: the profile's)")
    add("--out", metavar="DIR", type=Path, default=Path("epd-plan"), help="folder to write to (default: epd-plan)")
    parser.set_defaults(run=run)


def _add_given(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--profile", metavar="NAME|FILE", required=True, help="what the model costs on the hardware")
    add("--tier", metavar="NAME", help="of the profile's links, between instances (default: cuda_ipc, or the first)")
    share = Fleet(Topology(())).memory_share
    add("--memory-share", metavar="X", type=float, default=share, help=f"of a device's memory (default: {share})")
    add("--workload", metavar="FILE", type=Path, help="YAML, a trace, an access log, or a benchmark's result")
    add("--rate", metavar="R", type=float, help="requests in a second")
    add("--requests", metavar="N", type=int, help="of the workload; a plan takes as many as it needs")
    add("--images", metavar="N", type=int, help="of each request, in the place of a workload's file")
    add("--image-size", metavar="WxH", help="in pixels (default: 1024x1024)")
    add("--text-tokens", metavar="N", type=int, help="of each prompt (default: 100)")
    add("--output-tokens", metavar="N", type=int, help="of each answer (default: 100)")
    add("--seed", metavar="N", type=int, help="of all that is drawn (default: the workload's, or 0)")
