# SPDX-License-Identifier: Apache-2.0
"""A simulation from its beginning to its end. Pure, and the same for the same arguments."""

from collections.abc import Sequence

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.engine import Trace
from vllm_epd.planner.simulate.fleet_run import FleetRun
from vllm_epd.planner.simulate.jobs import Journey
from vllm_epd.planner.simulate.outcome import Outcome, Served
from vllm_epd.planner.simulate.switching import Switches, Switching
from vllm_epd.planner.workload.requests import Request


def simulate(
    fleet: Fleet,
    profile: Profile,
    requests: Sequence[Request],
    *,
    trace: Trace | None = None,
    ttft_slo_s: float | None = None,
    switches: Switches | None = None,
) -> Outcome:
    """What becomes of the requests.

    Args:
        fleet: what serves them.
        profile: what a model costs.
        requests: in the order in which they come.
        trace: told what each instance does when, for pictures.
        ttft_slo_s: how soon a first token should come, where queues are ordered by that.
        switches: how instances change their roles meanwhile; None if they do not.

    Raises:
        ConfigError: an instance does not fit its device, or there is no such link.
    """
    run = FleetRun(fleet, profile, trace=trace, ttft_slo_s=ttft_slo_s)
    if switches is not None:
        Switching(run, switches, fleet, profile, len(requests), trace)
    _Arrivals(run, requests).wait()
    run.events.run()
    run.close()
    served = sorted((_served(each) for each in run.ended), key=lambda each: each.number)
    end = max((each.done for each in served), default=0.0)
    return Outcome(served, run.refused, [each.use() for each in run.instances], end)


class _Arrivals:
    """Requests that come, one event at a time, so that there are no more events than things under way."""

    def __init__(self, run: FleetRun, requests: Sequence[Request]) -> None:
        self._run = run
        self._requests = requests
        self._next = 0

    def wait(self) -> None:
        """Have the next one come at its time, if there is one."""
        if self._next < len(self._requests):
            self._run.events.at(self._requests[self._next].at, self._come)

    def _come(self) -> None:
        request = self._requests[self._next]
        self._next += 1
        self.wait()
        self._run.arrive(request)


def _served(journey: Journey) -> Served:
    assert journey.prefill is not None
    assert journey.decode is not None
    return Served(
        number=journey.request.number,
        arrived=journey.request.at,
        first_token=journey.first_token,
        done=journey.done,
        output_tokens=journey.output,
        encoder=None if journey.encoder is None else journey.encoder.name,
        prefill=journey.prefill.name,
        decode=journey.decode.name,
    )
