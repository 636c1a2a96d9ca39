# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench.policies`: the router's policies and orders on one seeded trace, in a simulation and on stubs.

Neither says how fast anything is: both compare the settings with each other, on instances that take a fixed time for
each token of work. Prints a table in Markdown.
"""

import argparse
import asyncio
from collections.abc import Sequence

from tests.bench.policies.fleet import ENCODERS, PREFILLS, SETTINGS, Outcome
from tests.bench.policies.simulate import Simulation
from tests.bench.policies.stubs import replay
from tests.bench.policies.trace import REQUESTS, SEED, Arrival, build_trace


def main() -> None:
    options = _parse()
    trace = build_trace(options.requests, options.seed)
    print(f"{len(trace)} requests in {trace[-1].at:.0f} s, {ENCODERS} encoders, {PREFILLS} prefill instances\n")
    simulated = [Simulation(trace, setting).run() for setting in SETTINGS]
    stubs = [] if options.simulated else [asyncio.run(replay(trace, setting)) for setting in SETTINGS]
    _print(trace, simulated, stubs)


def _print(trace: list[Arrival], simulated: Sequence[Outcome], stubs: Sequence[Outcome]) -> None:
    groups = {"simulated": simulated, "stubs": stubs} if stubs else {"simulated": simulated}
    columns = [f"{name}: {what}" for name in groups for what in ("TTFT p50", "p99", "in time")]
    print(f"| policy | order | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}")
    for row in zip(*groups.values(), strict=True):
        cells = [text for outcome in row for text in _cells(trace, outcome)]
        print(f"| `{row[0].setting.policy}` | `{row[0].setting.order}` | {' | '.join(cells)} |")


def _cells(trace: list[Arrival], outcome: Outcome) -> tuple[str, str, str]:
    p50, p99 = outcome.quantile(0.5), outcome.quantile(0.99)
    return f"{p50:.2f} s", f"{p99:.2f} s", f"{100 * outcome.attained(trace):.0f} %"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policies", description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="length of the trace")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--simulated", action="store_true", help="leave out the stubs, which take as long as the trace")
    return parser.parse_args()


if __name__ == "__main__":
    main()
