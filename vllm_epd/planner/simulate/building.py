# SPDX-License-Identifier: Apache-2.0
"""The instances of a fleet, on their hosts, with nothing to do yet. Pure."""

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.memory import room
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.engine import Finished, Trace
from vllm_epd.planner.simulate.events import Cores, Device, EngineOnCores, Events
from vllm_epd.planner.simulate.host import Host
from vllm_epd.planner.simulate.instance import Instance


def build(fleet: Fleet, profile: Profile, events: Events, finished: Finished, trace: Trace | None) -> list[Instance]:
    """Instances in the order of the topology; so many of them share the cores of a host.

    Raises:
        ConfigError: one does not fit its device.
    """
    cores = profile.hardware.cores if fleet.cores is None else fleet.cores
    rooms = {group.roles: room(profile, group.roles, fleet) for group in fleet.topology.groups}
    made: list[Instance] = []
    for group in fleet.topology.groups:
        for number in range(group.count):
            if len(made) % fleet.instances_per_host == 0:
                shared = Cores(events, cores, profile.overhead.contention)
            worker = EngineOnCores(shared) if profile.hardware.device == "cpu" else Device(events)
            host = Host(events, shared, worker, fleet.preprocess_workers)
            name = f"{group.roles.letters}{number}"
            made.append(Instance(name, group.roles, rooms[group.roles], fleet, profile, host, finished, trace))
    return made
