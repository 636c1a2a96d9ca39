# SPDX-License-Identifier: Apache-2.0
"""The flags on vLLM's own parser, and what they do to its arguments. Real vLLM, no engine."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

PROGRAM = """
import json, os, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm import AsyncEngineArgs
from vllm_epd.errors import EPDError
args = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
args.model = "m"
try:
    AsyncEngineArgs.from_cli_args(args)
    first = args.ec_transfer_config and args.ec_transfer_config.engine_id
    engine = AsyncEngineArgs.from_cli_args(args)
except EPDError as error:
    print(json.dumps({"error": str(error), "type": type(error).__name__}))
    sys.exit()
ec, kv = engine.ec_transfer_config, engine.kv_transfer_config
print(json.dumps({
    "ec": ec and [ec.ec_connector, ec.ec_role], "kv": kv and [kv.kv_connector, kv.kv_role],
    "limits": engine.limit_mm_per_prompt, "executor": engine.distributed_executor_backend,
    "env": {name: os.environ.get(name) for name in ("EPD_ROLE", "VLLM_PLUGINS")},
    "settings": ec and ec.ec_connector_extra_config, "same_epoch": first == (ec and ec.engine_id),
    "kv_settings": kv and kv.kv_connector_extra_config,
    "side_channel": os.environ.get("VLLM_NIXL_SIDE_CHANNEL_PORT"),
}))
"""
Serve = Callable[..., dict[str, Any]]


@pytest.fixture
def serve() -> Serve:
    """What `vllm serve m *arguments` would start with."""

    def run(*arguments: str, **environment: str) -> dict[str, Any]:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


def test_without_the_flag_nothing_changes(serve: Serve) -> None:
    result = serve()
    assert result["ec"] is None
    assert result["kv"] is None
    assert result["limits"] == {}
    assert result["env"] == {"EPD_ROLE": None, "VLLM_PLUGINS": None}


def test_vllms_own_kv_connector_can_be_asked_for(serve: Serve) -> None:
    assert serve("--epd-role", "decode", "--epd-kv-connector", "nixl")["kv"] == ["NixlConnector", "kv_consumer"]


def test_the_agents_of_both_connectors_have_ports_of_their_own(serve: Serve) -> None:
    parallel = ("--data-parallel-size", "3", "--tensor-parallel-size", "2")
    result = serve("--epd-role", "prefill", *parallel)
    assert result["kv_settings"]["port"] == result["settings"]["port"] + 3
    result = serve("--epd-role", "prefill", "--epd-kv-connector", "nixl", *parallel)
    assert int(result["side_channel"]) == result["settings"]["port"] + 3


def test_one_flag_derives_an_instance_once(serve: Serve) -> None:
    result = serve(
        *("--epd-role", "prefill", "--epd-lease-s", "7"),
        *("--epd-embedding-codec", "fp8", "--epd-embedding-check", "checksum"),
    )
    assert result["ec"] == ["EPDEmbeddingConnector", "ec_consumer"]
    assert result["kv"] == ["EPDKVConnector", "kv_producer"]
    assert result["limits"]["image"] == 0
    assert result["settings"]["lease_s"] == 7
    assert (result["settings"]["codec"], result["settings"]["check"]) == ("fp8", "checksum")
    assert result["same_epoch"]
    assert result["env"]["EPD_ROLE"] == "prefill"
    assert {"epd", "lora_filesystem_resolver"} <= set(result["env"]["VLLM_PLUGINS"].split(","))


def test_a_file_gives_values_and_the_command_line_wins(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "instance.yaml"
    file.write_text("role: encode\nlease_s: 5\npool_bytes: 64MiB\n")
    result = serve("--epd-config", str(file), "--epd-lease-s", "9")
    assert result["ec"] == ["EPDEmbeddingConnector", "ec_producer"]
    assert (result["settings"]["lease_s"], result["settings"]["pool_bytes"]) == (9, 64 << 20)
    file.write_text("role: encode\nlease: 5\n")
    assert "lease_s" in serve("--epd-config", str(file))["error"], "unknown keys come with the list of known ones"


def test_a_contradiction_names_both(serve: Serve) -> None:
    result = serve("--epd-role", "decode", "--language-model-only")
    assert result["type"] == "RoleConflictError"
    assert "--epd-role decode contradicts --language-model-only" in result["error"]


def test_plugins_chosen_by_the_user_stay(serve: Serve) -> None:
    assert serve("--epd-role", "decode", VLLM_PLUGINS="epd")["env"]["VLLM_PLUGINS"] == "epd"


def test_the_flags_are_a_group_of_their_own_in_the_help() -> None:
    from vllm_epd.roles.serve import add_flags

    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = parser.format_help()
    assert "EPD:" in text
    assert "--epd-role" in text
    assert "--epd-config" in text
