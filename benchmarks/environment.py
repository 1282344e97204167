"""Where a run took place: everything that could explain its numbers."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

PACKAGES = (
    "tidegate", "nvidia-pytriton", "onnxruntime", "torch", "tritonclient", "grpcio", "uvicorn", "uvloop", "httptools",
    "locust", "hdrhistogram", "numpy", "msgspec",
)  # fmt: skip


_CHANGES = ("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
"""A report just written is no change of what the next one measures."""


def capture(url: str | None = None) -> dict[str, Any]:
    """Machine, software, load before the start; ``url`` is the system's address where it was not started here."""
    times = psutil.cpu_times()
    return {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": _command(),
        "machine": {
            "processor": _processor(),
            "cores": psutil.cpu_count(),
            "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
            "frequency_mhz": _frequency(),
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
            "memory_bytes": psutil.virtual_memory().total,
            "kernel": platform.release(),
            "gpu": gpus(),
        },
        "software": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git(*_CHANGES))},
        "before_start": {
            "load_average": os.getloadavg(),
            "steal_s": getattr(times, "steal", 0.0),
            "total_s": round(sum(times), 2),
            "busy_share": psutil.cpu_percent(interval=1.0) / 100,
        },
        "network": {"load_generator": _place(url), "tls": False, "keep_alive": True},
    }


def _place(url: str | None) -> str:
    """Where the load comes from, seen from the system."""
    host = urlsplit(url if url and "//" in url else f"//{url or 'localhost'}").hostname or "localhost"
    here = {address.address for found in psutil.net_if_addrs().values() for address in found}
    if host == "localhost" or host.startswith("127.") or host in here:
        return "same host; it shares the cores with the system it measures"
    return f"this host; the system is at {host}, and the machine described here is not the system's"


def _command() -> str:
    """What was typed, without the folder that the program lies in."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name
    return shlex.join([*shlex.split(program), *sys.argv[1:]])


def noise(environment: dict[str, Any], after: dict[str, Any] | None = None) -> list[str]:
    """What made the machine unfit for headline numbers; empty when it was quiet.

    ``after`` is another :func:`capture`, made when the run had ended: someone may have begun meanwhile.
    """
    before = environment["before_start"]
    reasons = []
    if after is not None and after["before_start"]["busy_share"] > 0.1:
        reasons.append(f"the machine was {after['before_start']['busy_share']:.0%} busy after the run had ended")
    if before["busy_share"] > 0.1:
        reasons.append(f"the machine was {before['busy_share']:.0%} busy before the run began")
    if after is not None:
        steal, total = (after["before_start"][name] - before[name] for name in ("steal_s", "total_s"))
        if steal > 0.01 * total:
            reasons.append(f"the hypervisor stole {steal / total:.1%} of the processor time during the run")
    return reasons


def allow_open_files(number: int) -> None:
    """Raise the limit of open files of this process and its children to ``number``, as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def gpus() -> list[str]:
    """NVIDIA GPUs as ``nvidia-smi`` names them; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return [line.strip() for line in _output(query).splitlines() if line.strip()]


def _processor() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _frequency() -> float | None:
    frequency = psutil.cpu_freq()
    return round(frequency.current, 1) if frequency else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _git(*arguments: str) -> str:
    return _output(["git", *arguments]).strip()


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
