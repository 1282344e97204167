"""Usage and cost of the key's project: by model, by day, and the latest records."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import charts, layout, session
from dashboard.client import GatewayFailure

NAME = "usage"
PERIODS = {"7 days": 7, "30 days": 30, "90 days": 90}
RECORDS = 50
SUMS = ("model", "requests", "completed", "failed", "tokens", "pixels", "compute_ms", "cost_usd", "billed_usd")
LATEST = (
    "received_at", "model", "operation", "state", "status", "tokens", "pixels", "total_ms", "compute_ms", "cost_usd",
    "usage_id",
)  # fmt: skip


def explain(failure: GatewayFailure) -> None:
    """Say what is missing; a key without the right is no error of the page."""
    if failure.kind == "forbidden":
        st.info(
            "This key may ask models, but it may not read usage. A key with the scope `usage:read` may: "
            "`tidegate keys create --project NAME --scope infer --scope usage:read`.",
            icon=":material/lock:",
        )
    else:
        layout.show_failure(failure)


def totals(rows: list[dict[str, Any]]) -> None:
    """Requests, tokens, pixels and cost of the period."""
    frame = pd.DataFrame(rows)
    boxes = st.columns(4)
    for box, (title, name) in zip(
        boxes, {"Requests": "requests", "Tokens": "tokens", "Pixels": "pixels"}.items(), strict=False
    ):
        box.metric(title, f"{int(frame[name].sum()):,}" if name in frame else "–", border=True)
    boxes[3].metric("Cost", layout.dollars(float(frame["cost_usd"].sum())) if "cost_usd" in frame else "–", border=True)


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """The rows' columns that a visitor reads, in a fixed order."""
    frame = pd.DataFrame(rows)
    shown = [name for name in columns if name in frame]
    formats = {name: st.column_config.NumberColumn(format="%.3f") for name in shown if name.endswith("_ms")}
    money = {name: st.column_config.NumberColumn(format="$%.9f") for name in shown if name.endswith("_usd")}
    st.dataframe(frame, hide_index=True, column_order=shown, column_config=formats | money)


def report(since: str) -> None:
    """Charts and tables of the period."""
    by_model = session.client().usage("model", since=since)
    if not by_model:
        st.info("Nothing was used in this period yet. Ask a model something first.", icon=":material/inbox:")
        return
    totals(by_model)
    by_day = session.client().usage("day", since=since)
    left, right = st.columns(2, gap="large")
    left.markdown("**Cost by model**")
    left.altair_chart(charts.bars(by_model, "model", "cost_usd", "USD"), alt="Cost by model")
    right.markdown("**Cost by day**")
    right.altair_chart(charts.bars(by_day, "day", "cost_usd", "USD", time=True), alt="Cost by day")
    st.markdown("**By model**")
    table(by_model, SUMS)
    st.markdown(f"**The latest {RECORDS} requests**")
    table(session.client().usage_records(limit=RECORDS), LATEST)


layout.head("Usage and cost", "What the project of this key has used, from the ledger.")
if not session.key():
    st.info("Enter an API key in the sidebar to see its usage.", icon=":material/key:")
else:
    chosen = st.segmented_control("Period", list(PERIODS), default="7 days", key=f"{NAME}.period", required=True)
    first_day = dt.datetime.now(tz=dt.timezone.utc).date() - dt.timedelta(days=PERIODS[chosen or "7 days"] - 1)
    try:
        report(first_day.isoformat())
    except GatewayFailure as failure:
        explain(failure)
