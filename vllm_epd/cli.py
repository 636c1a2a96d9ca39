# SPDX-License-Identifier: Apache-2.0
"""The command line: `vllm-epd up | route | doctor | profile | simulate | plan`.

Each command imports what it needs when it runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_epd import __version__
from vllm_epd.errors import ConfigError
from vllm_epd.types import Role

INTERRUPTED = 130
UP_EXAMPLES = """\
examples:
  vllm-epd up                                    a tiny model made here: one encode, prefill and decode instance
  vllm-epd up Qwen/Qwen2.5-VL-7B-Instruct --topology 2E1PD
  vllm-epd up MODEL --topology 1E1P1D -- --max-model-len 8192
  vllm-epd up --config topology.yaml

a topology is a list of groups, each a count and the letters of its roles: 2EP1D is two instances that encode and
prefill, and one that decodes.
"""

DOCTOR_EXAMPLES = """\
examples:
  vllm-epd doctor                                between two instances of this machine
  vllm-epd doctor --listen 10.0.0.7              on one host, and
  vllm-epd doctor --peer 10.0.0.7                on another; EPD_TOKEN, if set, must be the same for both
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 for a failure at run time, 2 for what cannot be done as asked."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # By hand, since argparse would give what follows `--` to an optional MODEL that is left out.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = build_parser().parse_args(arguments[:end])
    try:
        code: int = options.run(options, arguments[end + 1 :])
        return code
    except ConfigError as error:
        sys.stderr.write(f"vllm-epd: {error}\n")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="vllm-epd", description="Encode, prefill and decode of multimodal models as separate vLLM instances."
    )
    parser.add_argument("--version", action="version", version=f"vllm-epd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_up(commands)
    _add_route(commands)
    _add_doctor(commands)
    _add_planner(commands)
    return parser


def _add_up(commands: Any) -> None:
    parser = commands.add_parser(
        "up",
        help="run a topology on this machine",
        description="Start a router and all instances of a topology, and stop them together on Ctrl-C.",
        epilog=UP_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="vllm-epd up [MODEL] [OPTION ...] [-- ARGUMENT_OF_VLLM_SERVE ...]",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="name or folder of a model, as for `vllm serve`")
    add("--demo", metavar="FAMILY", help="serve a tiny model of this family instead (default: qwen2.5-vl)")
    add("--topology", metavar="TEXT", help="such as 2E1PD (default: 1E1P1D)")
    add("--config", metavar="FILE", type=Path, help="YAML file; what is given here wins over it")
    add("--host", help="address of the router (default: 127.0.0.1)")
    add("--port", type=int, help="port of the router, 0 for a free one (default: 8000)")
    add("--gpus", help="auto, none or numbers such as 0,1 (default: auto)")
    add("--share-gpus", action="store_true", default=None, help="let instances share GPUs if there are too few")
    add("--parallel-starts", metavar="N", type=int, help="most instances that start at the same time")
    add("--startup-timeout", metavar="S", type=float, dest="startup_timeout_s", help="per instance (default: 600)")
    add("--log-dir", metavar="DIR", help="folder of the logs (default: a new one in the user's state folder)")
    _add_router_options(parser)
    parser.set_defaults(run=_up)


def _add_route(commands: Any) -> None:
    parser = commands.add_parser(
        "route",
        help="run a router alone",
        description="Run a router with which instances register (`vllm serve --epd-router URL`).",
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for a free one (default: 8000)")
    _add_router_options(parser)
    parser.set_defaults(run=_route)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check how embeddings move between instances",
        description="Move real bytes between two instances over every transport that can be there, and time them. The"
        " exit code is 0 if what an instance chooses by itself works.",
        epilog=DOCTOR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--listen", metavar="HOST[:PORT]", help="be the instance that another host fetches from")
    side.add_argument("--peer", metavar="HOST[:PORT]", help="fetch from the instance that listens there")
    parser.add_argument("--transport", metavar="NAME", default="auto", help="the only one to use (default: auto)")
    parser.add_argument("--nixl-backend", metavar="NAME", default="UCX", help="NIXL's backend (default: UCX)")
    parser.set_defaults(run=_doctor)


def _add_planner(commands: Any) -> None:
    from vllm_epd.planner.commands.arguments import add_plan, add_profile, add_simulate

    add_profile(commands, _profile)
    add_simulate(commands, _simulate)
    add_plan(commands, _plan)


def _add_router_options(parser: argparse.ArgumentParser) -> None:
    from vllm_epd.router.ordering import ORDERS
    from vllm_epd.router.policies import DEFAULTS, POLICIES

    add, policies, orders = parser.add_argument, sorted(POLICIES), sorted(ORDERS)
    add("--policy", choices=policies, help="how to choose among instances of one role")
    add("--order", choices=orders, help="who of those that wait for a stage is next (default: fcfs)")
    for stage in Role:
        add(f"--{stage}-policy", choices=policies, help=f"the same for {stage} (default: {DEFAULTS[stage]})")
        add(f"--{stage}-order", choices=orders, help=f"the same for {stage}")
    add("--max-queue", metavar="N", type=int, help="most requests that wait for a stage (default: 1024)")
    add("--irp-degree", metavar="auto|N", help="as how many shards one large image or video is encoded (default: auto)")
    add("--ttft-slo", metavar="S", type=float, dest="ttft_slo_s", help="how soon a first token should come")
    add("--retries", metavar="N", type=int, help="how often a request may start over elsewhere (default: 3)")
    add("--recovery-bytes", metavar="N", type=int, help="of bodies that are kept for that (default: 256 MiB)")
    add("--access-log", metavar="FILE", help="write a line of JSON for each request; - is standard output")
    add("--ttl", metavar="S", type=float, help="drop instances that are silent for so long")
    add("--workers", metavar="N", type=int, help="processes of the router (default: 1)")


def _up(options: argparse.Namespace, arguments: list[str]) -> int:
    from rich.console import Console

    from vllm_epd.launch.config import load_launch_config
    from vllm_epd.launch.up import up

    names = ("topology", "host", "port", "gpus", "share_gpus", "parallel_starts", "startup_timeout_s", "log_dir")
    overrides = _given({name: getattr(options, name) for name in names})
    if router := _router_settings(options):
        overrides["router"] = router
    if options.model is not None or options.demo is not None:
        overrides |= {"model": options.model, "demo": options.demo}
    return up(load_launch_config(options.config, overrides), arguments, Console())


def _route(options: argparse.Namespace, arguments: list[str]) -> int:
    from vllm_epd.router.app import serve
    from vllm_epd.router.config import RouterConfig

    _check_none("route", arguments)
    values = _given({"host": options.host, "port": options.port}) | _router_settings(options)
    if options.ttl is not None:
        values["heartbeat_s"] = options.ttl / 3
    serve(RouterConfig.from_mapping(values))
    return 0


def _doctor(options: argparse.Namespace, arguments: list[str]) -> int:
    _check_none("doctor", arguments)
    from rich.console import Console

    from vllm_epd.doctor.command import doctor
    from vllm_epd.doctor.examine import Wanted

    return doctor(Wanted(options.transport, options.nixl_backend), options.listen, options.peer, Console())


def _profile(options: argparse.Namespace, arguments: list[str]) -> int:
    from rich.console import Console

    from vllm_epd.planner.measure.command import Wanted, profile_command

    _check_none("profile", arguments)
    names = ("model", "url", "out", "folder", "tier", "whole", "repeats", "seed")
    return profile_command(Wanted(**_given({name: getattr(options, name) for name in names})), Console())


def _simulate(options: argparse.Namespace, arguments: list[str]) -> int:
    from rich.console import Console

    from vllm_epd.planner.commands.simulate import simulate_command

    _check_none("simulate", arguments)
    return simulate_command(options, Console())


def _plan(options: argparse.Namespace, arguments: list[str]) -> int:
    from rich.console import Console

    from vllm_epd.planner.commands.plan import plan_command

    _check_none("plan", arguments)
    return plan_command(options, Console())


def _check_none(command: str, arguments: list[str]) -> None:
    if arguments:
        raise ConfigError(f"{command} takes no arguments after --, got {' '.join(arguments)}")


def _router_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What is asked of the router, by the names of its settings."""
    names = ["workers", "policy", "order", "max_queue", "ttft_slo_s", "irp_degree"]
    names += ["retries", "recovery_bytes", "access_log"]
    names += [f"{stage}_{kind}" for stage in Role for kind in ("policy", "order")]
    return _given({"ttl_s": options.ttl, **{name: getattr(options, name) for name in names}})


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
