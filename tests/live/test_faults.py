"""Triton dies under load: clients see the promised answers, and it comes back without a hand."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.live

BODY = {"inputs": [{"name": "INPUT", "shape": [1, 64], "datatype": "FP32", "data": [1.0] * 64}]}


def triton_pid(stack: Any) -> int:
    """The process that listens on Triton's HTTP port."""
    port = int(stack.triton["http"].rpartition(":")[2])
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
            inode = fields[9]
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(str(entry.readlink()) == f"socket:[{inode}]" for entry in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue
    raise AssertionError(f"nobody listens on {port}")


def test_triton_killed_under_load_gives_503_and_comes_back(stack: Any, poll: Callable[..., None]) -> None:
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=stack.gateway_url, headers=stack.headers, timeout=30.0) as client:
            while not stop.is_set():
                answers.append(client.post("/v2/models/identity/infer", json=BODY))
                if answers[-1].status_code != 200:
                    stop.wait(0.1)  # it is asked to wait longer, and what comes back needs the processor

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        poll(lambda: len(answers) > 20, 30, "answers before the kill")
        os.kill(triton_pid(stack), signal.SIGKILL)
        poll(lambda: any(answer.status_code == 503 for answer in list(answers)), 30, "a 503")
        live = httpx.get(f"{stack.gateway_url}/healthz/live")
        assert live.status_code == 200
        poll(lambda: httpx.get(f"{stack.gateway_url}/healthz/ready").status_code == 200, 180, "recovery")
        before = len(answers)
        poll(lambda: len(answers) > before + 20, 30, "answers after the recovery")
        assert answers[-1].status_code == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    seen = {answer.status_code for answer in answers}
    assert seen <= {200, 502, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert re.fullmatch(r"[1-9]\d*", answer.headers["retry-after"])
        if answer.status_code != 200:
            assert set(answer.json()) == {"error"}
            assert "127.0.0.1" not in answer.text
        else:
            assert answer.json()["outputs"][0]["data"] == [1.0] * 64
