# SPDX-License-Identifier: Apache-2.0
"""Real runs: a topology of `vllm-epd up`, and vLLM's own benchmark against it."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import psutil

from vllm_epd.errors import EPDError
from vllm_epd.planner.measure.chat import WORDS
from vllm_epd.planner.measure.pictures import picture
from vllm_epd.planner.workload.requests import Request

PYTHON = (sys.executable, "-P", "-m")
SERVE = ("--enforce-eager", "--max-model-len", "4096", "--dtype", "float32")
"""A processor without instructions for numbers of 16 bits takes ten times as long for those."""

START_LIMIT_S = 300.0
BENCH_LIMIT_S = 500.0
WARMUPS = 6
BEGUN, OVER = "Starting main benchmark run", " Serving Benchmark Result "
"""What the benchmark writes before its first request, and after its last answer."""

TOKENS_PER_WORD = 3
"""Of the demo models' tokenizer, about; a server counts them."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""A thread for each instance, so that all topologies have the same instances."""


class RunError(EPDError):
    """A real run did not come to an end as it should."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One request of a real run.

    Attributes:
        at: when it was sent, in seconds from the first.
        prompt_tokens: as the server counts them.
        ttft_s: until its first token.
        tpot_s: mean time of a token after that.
    """

    at: float
    prompt_tokens: int
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Benched:
    """What the benchmark has seen, and used itself.

    Attributes:
        timed: its requests.
        client_s: processor time that the benchmark took for each of them.
    """

    timed: list[Timed]
    client_s: float


@contextmanager
def serving(demo: str, topology: str, logs: Path, port: int) -> Iterator[str]:
    """The base URL of a topology of a demo model, as long as the context is open."""
    url = f"http://127.0.0.1:{port}"
    options = ("--demo", demo, "--topology", topology, "--port", str(port), "--log-dir", str(logs / topology))
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{topology}.log").open("wb") as log:
        command = [*PYTHON, "vllm_epd.cli", "up", *options, "--", *SERVE]
        child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT})
        try:
            _wait(child, f"{url}/ready", logs / f"{topology}.log")
            yield url
        finally:
            child.terminate()
            child.wait(60)


def _wait(child: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end and child.poll() is None:
        with suppress(URLError, OSError), urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise RunError(f"{url} did not become ready; see {log}")


def write_dataset(path: Path, requests: Sequence[Request], seed: int | Sequence[int]) -> None:
    """Write requests as the benchmark's `custom_image` reads them, with new pictures and words for their text."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for request in requests:
            images = [base64.b64encode(picture(rng, item.width, item.height)).decode() for item in request.items]
            line = {
                "prompt": " ".join(rng.choice(WORDS, max(1, request.text_tokens // TOKENS_PER_WORD))),
                "image_files": [f"data:image/png;base64,{image}" for image in images],
            }
            file.write(json.dumps(line) + "\n")


def bench(
    url: str, model: str, folder: Path, dataset: Path, requests: int, output: int, rate: float, seed: int
) -> Benched:
    """Send a data set with Poisson arrivals by `vllm bench serve`.

    Raises:
        RunError: it failed, or a request did.
    """
    result = dataset.with_suffix(".result.json")
    options = {
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "base-url": url,
        "model": model,
        "tokenizer": str(folder),
        "dataset-name": "custom_image",
        "dataset-path": str(dataset),
        "custom-output-len": output,
        "num-prompts": requests,
        "request-rate": rate,
        "seed": seed,
        "temperature": 0,
        "num-warmups": WARMUPS,
        "result-dir": str(result.parent),
        "result-filename": result.name,
    }
    flags = ["disable-shuffle", "ignore-eos", "save-result", "save-detailed", "disable-tqdm", "trust-remote-code"]
    command = [*PYTHON, "vllm.entrypoints.cli.main", "bench", "serve", *(f"--{flag}" for flag in flags)]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    used_s = _run(command, dataset.with_suffix(".log"))
    if not result.exists():
        raise RunError(f"vllm bench serve has written no {result}")
    timed = read_result(json.loads(result.read_text()), output)
    return Benched(timed, used_s / len(timed))


def _run(command: Sequence[str], log: Path) -> float:
    """Run the benchmark to its end; processor time from its first request to its last answer."""
    environment = {**os.environ, **ENVIRONMENT, "VLLM_PLUGINS": "", "PYTHONUNBUFFERED": "1"}
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as child,
    ):
        limit = Timer(BENCH_LIMIT_S, child.kill)
        limit.start()
        try:
            used_s = used_between(child, BEGUN, OVER)
            code = child.wait()
        finally:
            limit.cancel()
    if code or used_s is None:
        raise RunError(f"vllm bench serve ended with {code}: {log.read_text()[-2000:]}")
    return used_s


def used_between(child: "subprocess.Popen[str]", first: str, last: str) -> float | None:
    """Processor time of a process between two lines that it writes, None if it does not; reads all that it writes."""
    process, moments = psutil.Process(child.pid), dict[str, float]()
    for line in child.stdout or ():
        for mark in (first, last):
            if mark in line:
                times = process.cpu_times()
                moments.setdefault(mark, float(times.user + times.system))
    return moments[last] - moments[first] if len(moments) == 2 else None


def read_result(found: dict[str, Any], output: int) -> list[Timed]:
    """What the benchmark has written of a run in which each request was to get so many tokens.

    Raises:
        RunError: a request failed.
    """
    if found["failed"] or set(found["output_lens"]) != {output}:
        raise RunError(f"{found['failed']} requests failed, tokens of output: {sorted(set(found['output_lens']))}")
    first = min(found["start_times"])
    return [
        Timed(start - first, tokens, ttft, sum(itls) / (output - 1))
        for start, tokens, ttft, itls in zip(
            found["start_times"], found["input_lens"], found["ttfts"], found["itls"], strict=True
        )
    ]
