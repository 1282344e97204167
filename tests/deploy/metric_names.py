"""The metric names there are: the gateway's, asked from its own registry, and Triton's documented ones."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]

TRITON = frozenset(
    [
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_count",
        "nv_inference_exec_count",
        "nv_inference_pending_request_count",
        "nv_inference_request_duration_us",
        "nv_inference_queue_duration_us",
        "nv_inference_compute_input_duration_us",
        "nv_inference_compute_infer_duration_us",
        "nv_inference_compute_output_duration_us",
        "nv_cache_num_hits_per_model",
        "nv_cache_num_misses_per_model",
        "nv_cache_hit_duration_per_model",
        "nv_cache_miss_duration_per_model",
        "nv_cpu_utilization",
        "nv_cpu_memory_total_bytes",
        "nv_cpu_memory_used_bytes",
        "nv_gpu_utilization",
        "nv_gpu_memory_total_bytes",
        "nv_gpu_memory_used_bytes",
        "nv_gpu_power_usage",
        "nv_gpu_power_limit",
        "nv_energy_consumption",
        "nv_pinned_memory_pool_total_bytes",
        "nv_pinned_memory_pool_used_bytes",
        "nv_model_load_duration_secs",
    ]
)
"""https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md"""


def gateway_metrics() -> frozenset[str]:
    """Families of the gateway's registry and of what is exported at scrape time; histograms with their parts."""
    rendered = Metrics().render().decode()
    families = dict(re.findall(r"^# TYPE (tidegate_\w+) (\w+)$", rendered, re.M))
    names = set(families) | set(
        re.findall(r"[\"'](tidegate_\w+)[\"']", (ROOT / "gateway" / "exports.py").read_text(encoding="utf-8"))
    )
    for name, kind in families.items():
        if kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return frozenset(names)


def recorded() -> frozenset[str]:
    """Names that our recording rules make."""
    rules = (ROOT / "deploy" / "prometheus" / "rules" / "tidegate.yml").read_text(encoding="utf-8")
    return frozenset(re.findall(r"record: (\S+)", rules))


def names_in(expression: str) -> set[str]:
    """Metric names of a PromQL expression: ours, Triton's, our recording rules' and ``up``."""
    return set(re.findall(r"\b(?:tidegate|nv)_\w+|\btidegate:[\w:]+|\bup\b", re.sub(r'"[^"]*"', "", expression)))
