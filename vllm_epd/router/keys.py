# SPDX-License-Identifier: Apache-2.0
"""Under which keys the application carries things."""

from aiohttp import web

from vllm_epd.router.context import Services
from vllm_epd.router.peers import PeerTable
from vllm_epd.router.pipeline import Pipeline
from vllm_epd.router.workers.siblings import Siblings
from vllm_epd.router.workers.worker import Worker

SERVICES = web.AppKey("services", Services)
PEERS = web.AppKey("peers", PeerTable)
PIPELINE = web.AppKey("pipeline", Pipeline)
SIBLINGS = web.AppKey("siblings", Siblings)
#: None where a router is one process.
WORKER: web.AppKey[Worker | None] = web.AppKey("worker")
