# SPDX-License-Identifier: Apache-2.0
"""A simulation from its beginning to its end. Pure, and the same for the same arguments."""

from collections.abc import Sequence
from functools import partial

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.fleet_run import FleetRun
from vllm_epd.planner.simulate.instance import Instance, Trace
from vllm_epd.planner.simulate.jobs import Journey
from vllm_epd.planner.simulate.outcome import Outcome, Served, Use
from vllm_epd.planner.workload.requests import Request


def simulate(
    fleet: Fleet,
    profile: Profile,
    requests: Sequence[Request],
    *,
    trace: Trace | None = None,
    ttft_slo_s: float | None = None,
) -> Outcome:
    """What becomes of the requests.

    Args:
        fleet: what serves them.
        profile: what a model costs.
        requests: in the order in which they come.
        trace: told what each instance does when, for pictures.
        ttft_slo_s: how soon a first token should come, where queues are ordered by that.

    Raises:
        ConfigError: an instance does not fit its device, or there is no such link.
    """
    run = FleetRun(fleet, profile, trace=trace, ttft_slo_s=ttft_slo_s)
    for request in requests:
        run.events.at(request.at, partial(run.arrive, request))
    run.events.run()
    served = sorted((_served(each) for each in run.ended), key=lambda each: each.number)
    return Outcome(served, run.refused, [_use(each) for each in run.instances], run.events.now)


def _served(journey: Journey) -> Served:
    assert journey.prefill is not None
    assert journey.decode is not None
    return Served(
        number=journey.request.number,
        arrived=journey.request.at,
        first_token=journey.first_token,
        done=journey.done,
        output_tokens=journey.request.output_tokens,
        encoder=None if journey.encoder is None else journey.encoder.name,
        prefill=journey.prefill.name,
        decode=journey.decode.name,
    )


def _use(instance: Instance) -> Use:
    return Use(
        name=instance.name,
        busy_s=sum(instance.busy.values()),
        by_stage=dict(instance.busy),
        peak_kv_tokens=instance.peak_kv_tokens,
        kv_tokens=instance.room.kv_tokens,
        peak_embedding_tokens=instance.pool.peak,
        embedding_tokens=instance.pool.capacity,
    )
