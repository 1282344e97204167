"""Where a run took place: everything that could explain its numbers."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "tidegate", "nvidia-pytriton", "onnxruntime", "torch", "tritonclient", "grpcio", "uvicorn", "uvloop", "httptools",
    "locust", "hdrhistogram", "numpy", "msgspec",
)  # fmt: skip


def capture() -> dict[str, Any]:
    """Machine, software, load before the start."""
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
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
        "before_start": {
            "load_average": os.getloadavg(),
            "steal_share": round(getattr(times, "steal", 0.0) / max(1e-9, sum(times)), 5),
            "busy_share": psutil.cpu_percent(interval=1.0) / 100,
        },
        "network": {"load_generator": "same host, loopback", "tls": False, "keep_alive": True},
    }


def _command() -> str:
    """What was typed, without the folder that the program lies in."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name
    return shlex.join([*shlex.split(program), *sys.argv[1:]])


def noise(environment: dict[str, Any]) -> list[str]:
    """What made the machine unfit for headline numbers; empty when it was quiet."""
    before = environment["before_start"]
    reasons = []
    if before["busy_share"] > 0.1:
        reasons.append(f"the machine was {before['busy_share']:.0%} busy before the run began")
    if before["steal_share"] > 0.01:
        reasons.append(f"the hypervisor stole {before['steal_share']:.1%} of the processor time")
    return reasons


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
