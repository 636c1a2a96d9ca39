# SPDX-License-Identifier: Apache-2.0
"""A plan as text for people and as numbers for programs. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.cells import scaled
from vllm_epd.planner.search.compare import RATES, Contender
from vllm_epd.planner.search.demand import Sizes, sizes
from vllm_epd.planner.search.deploy import Deployment, deployment, largest_item
from vllm_epd.planner.search.planning import Plan
from vllm_epd.planner.search.traffic import rate_of

RUNNERS_UP = 5
"""That are told."""
FORMAT = 1
"""Of the numbers."""


def deploy(plan: Plan, model: str | None) -> Deployment:
    """What is to run: the plan's fleet, of the profile's model where no other is named."""
    problem, chosen = plan.ground.problem, plan.chosen
    return deployment(
        problem.profile,
        model or problem.profile.model,
        chosen.fleet,
        chosen.whole,
        largest_item(_sizes(plan)),
        problem.slo.ttft_s,
    )


def text(plan: Plan, run: Deployment, command: str) -> str:
    """The report.

    Args:
        plan: what it is about.
        run: what the command runs.
        command: that starts it.
    """
    parts = [
        plan.verdict.text,
        "\n".join(_setting(plan)),
        "Plan\n" + _indented(_describe(plan.chosen)),
        "Ways to share out the work, each at its best\n" + _indented(_ways(plan)),
        "Runners-up\n" + _indented(_runners_up(plan)),
        "If other traffic comes\n" + _indented(_sensitivity(plan)),
        f"Run it\n  {command}\n\nwith this file\n" + _indented(run.yaml().splitlines()),
    ]
    return "\n\n".join(parts) + "\n"


def numbers(plan: Plan, run: Deployment, command: str) -> dict[str, Any]:
    """The same, ready for JSON."""
    problem = plan.ground.problem
    return {
        "format": FORMAT,
        "verdict": {
            "chosen": plan.verdict.chosen.value,
            "disaggregation_pays": plan.verdict.pays,
            "text": plan.verdict.text,
        },
        "problem": {
            "model": problem.profile.model,
            "hardware": problem.profile.hardware.name,
            "profile": problem.profile.origin,
            "gpus": problem.gpus,
            "cell": plan.ground.cell,
            "rate": problem.rate,
            "slo": asdict(problem.slo),
            "seed": problem.seed,
            "requests": len(plan.ground.searching),
            "workload_rate": rate_of(plan.ground.searching),
        },
        "ways": [_contender(each) for each in plan.contenders],
        "sensitivity": {
            way.value: {
                "attainment": [{"rate": rate, "attainment": share} for rate, share in each.attainment.items()],
                "goodput": [{"media": factor, "goodput": rate} for factor, rate in each.goodput.items()],
            }
            for way, each in plan.sensitivity.items()
        },
        "command": command,
        "file": run.yaml(),
    }


def _sizes(plan: Plan) -> list[Sizes]:
    return [sizes(plan.ground.problem.profile, request) for request in plan.ground.searching]


def _setting(plan: Plan) -> list[str]:
    problem, ground = plan.ground.problem, plan.ground
    slo, profile = problem.slo, problem.profile
    lines = [
        f"For {profile.model} on {profile.hardware.name} (profile: {profile.origin}), {problem.gpus} GPUs at most.",
        f"Goodput is the highest rate at which {slo.share:.0%} of the requests have a TTFT of {slo.ttft_s:g} s and a"
        f" TPOT of {slo.tpot_s:g} s.",
        f"Found with {len(ground.searching)} requests of seed {problem.seed}, and compared on"
        f" {len(ground.comparing)} times {len(ground.comparing[0])} others.",
    ]
    if problem.rate:
        lines.append(f"Asked for are {problem.rate:g} requests/s with as few GPUs as can be.")
    if ground.cell < problem.gpus:
        lines.append(
            f"A cell of {ground.cell} GPUs was simulated with its part of the load, and the plan is"
            f" {plan.chosen.cells:.4g} times that cell. One fleet that shares its queues does no worse."
        )
    return lines


def _describe(each: Contender) -> list[str]:
    limits, fleet = each.fleet.limits, each.fleet
    lines = [
        f"{each.whole} ({each.way}): {each.goodput:.3g} requests/s, {each.goodput / each.gpus:.3g} for each GPU",
        f"at most {limits.encode_items} items in an encode batch, {limits.prefill_sequences} prompts and"
        f" {limits.decode_sequences} generating sequences, {limits.batched_tokens} tokens in a step",
    ]
    if fleet.policies:
        lines.append("policies: " + ", ".join(f"{role} {policy}" for role, policy in fleet.policies.items()))
    if fleet.orders:
        lines.append("orders: " + ", ".join(f"{role} {order}" for role, order in fleet.orders.items()))
    if each.attainment is not None:
        lines.append(f"{each.attainment:.1%} have what is promised at the rate that was asked for")
    return lines


def _ways(plan: Plan) -> list[str]:
    rows = [("way", "fleet", "GPUs", "requests/s", "error", "looked at")]
    for each in plan.contenders:
        numbers = str(each.gpus), _rate(each.goodput), f"{each.error:.1%}", str(each.looked)
        rows.append((each.way.value, str(each.whole), *numbers))
    return _aligned(rows)


def _runners_up(plan: Plan) -> list[str]:
    """The best fleets of all ways, whose topology is not the plan's."""
    fleets = [
        (each.gpus, -each.goodput, str(each.whole), each.way) for each in plan.contenders if each is not plan.chosen
    ]
    for each in plan.contenders:
        for trial in each.others:
            whole = str(scaled(trial.fleet.topology, each.gpus))
            fleets.append((each.gpus, -trial.score.rate * each.cells, whole, each.way))
    rows = [("fleet", "way", "GPUs", "requests/s")]
    rows += [(whole, way.value, str(gpus), _rate(-worth)) for gpus, worth, whole, way in sorted(fleets)[:RUNNERS_UP]]
    return _aligned(rows) if fleets else ["none"]


def _sensitivity(plan: Plan) -> list[str]:
    ways = list(plan.sensitivity)
    rows = [("attainment at", *(way.value for way in ways))]
    for index, factor in enumerate(RATES):
        shares = [list(plan.sensitivity[way].attainment.items())[index] for way in ways]
        rows.append((f"{factor:g} x goodput, {shares[0][0]:.3g}/s", *(f"{share:.1%}" for _, share in shares)))
    lines = _aligned(rows)
    media = plan.sensitivity[ways[0]].goodput
    if media:
        rows = [("requests/s with", *(way.value for way in ways))]
        rows += [
            (f"{factor:g} x the media", *(_rate(plan.sensitivity[w].goodput[factor]) for w in ways)) for factor in media
        ]
        lines += ["", *_aligned(rows)]
    return lines


def _rate(goodput: float) -> str:
    return f"{goodput:.3g}" if goodput else "none"


def _contender(each: Contender) -> dict[str, Any]:
    return {
        "way": each.way.value,
        "topology": str(each.whole),
        "gpus": each.gpus,
        "goodput": each.goodput,
        "relative_error": each.error,
        "attainment": each.attainment,
        "enough": each.enough,
        "looked": each.looked,
        "cells": each.cells,
        "fleet": describe_fleet(each.fleet),
        "others": [{"fleet": describe_fleet(trial.fleet), "score": asdict(trial.score)} for trial in each.others],
    }


def describe_fleet(fleet: Fleet) -> dict[str, Any]:
    """A fleet, ready for JSON."""
    return {
        "topology": str(fleet.topology),
        "limits": asdict(fleet.limits),
        "policies": {role.value: policy for role, policy in fleet.policies.items()},
        "orders": {role.value: order for role, order in fleet.orders.items()},
        "irp_degree": fleet.irp_degree,
    }


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}".rstrip() for line in lines)
