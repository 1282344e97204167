"""Which numbers of which part are exported under which metric name: the parts keep plain attributes and
know nothing of Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.access.access import Access
from gateway.access.idempotency import Idempotency
from gateway.ledger.daily import DailyCheck
from gateway.ledger.ledger import Ledger
from gateway.ledger.null import NullLedger
from gateway.ledger.prices import PICO
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics, Sample
from gateway.tls import Tls
from gateway.triton.coalescer import Coalescer
from gateway.triton.pool import Pool


def export(
    metrics: Metrics,
    pool: Pool,
    coalescer: Coalescer,
    ledger: Ledger | NullLedger,
    access: Access,
    idempotency: Idempotency,
    daily: DailyCheck,
    tls: Tls | None = None,
) -> None:
    """Register every number that is read at scrape time."""
    counters = ledger.counters

    def members(attribute: str) -> Iterable[Sample]:
        return [({"server": member.name}, float(getattr(member, attribute))) for member in pool.members]

    def by(label: str, values: Mapping[str, float], scale: float = 1.0) -> Iterable[Sample]:
        return [({label: name}, value * scale) for name, value in list(values.items())]

    def states() -> Iterable[Sample]:
        named = {
            "accepted": counters.accepted,
            "completed": counters.completed,
            "failed": counters.failed,
            "client_closed": counters.client_closed,
            "unknown": ledger.unknown,
            "metered": ledger.metered,
            "dropped": ledger.dropped,
        }
        return by("state", named)

    watch = metrics.watch
    watch("tidegate_queue_depth", "Requests waiting to be sent to Triton.", lambda: by("model", coalescer.queue_depth))
    watch(
        "tidegate_shed_total", "Requests refused because they would have waited too long.",
        lambda: by("model", coalescer.shed), counter=True,
    )  # fmt: skip
    watch("tidegate_upstream_up", "Whether a Triton server serves models.", lambda: members("up"))
    watch(
        "tidegate_model_servers", "Triton servers that have the model ready.",
        lambda: by("model", {model: pool.servers(model) for model in pool.ready_models()}),
    )  # fmt: skip
    watch("tidegate_upstream_outstanding", "Requests in flight to a Triton server.", lambda: members("outstanding"))
    watch("tidegate_usage_records_total", "Usage records, by state.", states, counter=True)
    watch(
        "tidegate_cost_usd_total", "Settled compute cost.",
        lambda: by("model", counters.cost_pico_usd, 1 / PICO), counter=True,
    )  # fmt: skip
    watch("tidegate_journal_bytes", "Size of the usage journal.", lambda: [({}, ledger.journal_bytes)])
    watch(
        "tidegate_journal_spooled_bytes", "Of the usage journal: what is not in the database yet.",
        lambda: [({}, ledger.spooled_bytes)],
    )  # fmt: skip
    watch(
        "tidegate_journal_failures_total", "Writes and syncs of the usage journal that failed.",
        lambda: [({}, ledger.journal_failures)], counter=True,
    )  # fmt: skip
    watch(
        "tidegate_journal_damaged_total", "Damaged stretches found in usage journals.",
        lambda: [({}, ledger.damaged)], counter=True,
    )  # fmt: skip
    watch(
        "tidegate_ledger_rejected_total", "Usage records that the database refused, kept in a file.",
        lambda: [({}, ledger.rejected)], counter=True,
    )  # fmt: skip
    watch(
        "tidegate_ledger_refused_total", "Requests refused because their usage could not be recorded.",
        lambda: [({}, counters.refused)], counter=True,
    )  # fmt: skip
    watch(
        "tidegate_log_lines_lost_total", "Lines of the log that could not be written.",
        lambda: [({}, logs.lost_lines())], counter=True,
    )  # fmt: skip
    watch("tidegate_ledger_inflight", "Usage records that are reserved and not ended.", lambda: [({}, ledger.inflight)])
    watch(
        "tidegate_ledger_consistent", "1 while every accepted call is accounted for.", lambda: [({}, ledger.consistent)]
    )
    watch(
        "tidegate_ledger_imbalance", "Rows that Triton counted and no gateway recorded, or the reverse.",
        lambda: by("model", ledger.imbalance),
    )  # fmt: skip
    watch(
        "tidegate_ledger_compared", "1 while a model's books are being compared with Triton's counts.",
        lambda: by("model", ledger.compared),
    )  # fmt: skip
    watch(
        "tidegate_usage_sums_wrong", "Sums of the last closed day that differ from its usage records.",
        lambda: [({}, daily.wrong)],
    )  # fmt: skip
    watch(
        "tidegate_audit_records_total", "Audit records that this gateway has written.",
        lambda: [({}, access.audit.appended)], counter=True,
    )  # fmt: skip
    watch(
        "tidegate_audit_unanchored", "Signed checkpoints of the audit that the anchor file lacks.",
        lambda: [({}, access.audit.unanchored)],
    )  # fmt: skip
    watch(
        "tidegate_key_lookups_total", "Questions about credentials put to the database or the token verifier.",
        lambda: [({}, access.authenticator.lookups)], counter=True,
    )  # fmt: skip
    watch(
        "tidegate_limit_refusals_total", "Requests refused, by the name of the limit.",
        lambda: by("limit", access.admission.refused), counter=True,
    )  # fmt: skip
    watch(
        "tidegate_redis_fallback_total", "Requests limited by the local share because Redis did not answer.",
        lambda: [({}, access.admission.fallbacks)], counter=True,
    )  # fmt: skip
    watch(
        "tidegate_idempotency_total", "Requests with an idempotency key, by what became of them.",
        lambda: by("outcome", idempotency.outcomes), counter=True,
    )  # fmt: skip
    watch(
        "tidegate_idempotency_stored_bytes", "Answers kept for requests that are sent again.",
        lambda: [({}, idempotency.stored_bytes)],
    )  # fmt: skip
    if tls is not None:
        _export_tls(metrics, tls)


def _export_tls(metrics: Metrics, tls: Tls) -> None:
    watch = metrics.watch
    watch(
        "tidegate_tls_certificate_expiry_seconds", "Seconds until the certificate expires; negative when it has.",
        lambda: [({}, tls.expiry_s)],
    )  # fmt: skip
    watch(
        "tidegate_tls_stale", "1 while the certificate's files cannot be used and the one before is served.",
        lambda: [({}, tls.stale)],
    )  # fmt: skip
    watch(
        "tidegate_tls_reloads_total", "Readings of changed certificate files, by outcome.",
        lambda: [({"outcome": "taken"}, tls.reloads), ({"outcome": "refused"}, tls.failures)], counter=True,
    )  # fmt: skip
    watch(
        "tidegate_tls_handshakes", "HTTP connections in their TLS handshake.",
        lambda: [({}, tls.context.handshakes)],
    )  # fmt: skip
