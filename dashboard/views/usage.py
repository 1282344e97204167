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
CENT = 0.01  # USD; where all sums are below, they are shown in µ$
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


def unit(rows: list[dict[str, Any]]) -> tuple[str, float]:
    """The unit that shows the digits of the rows' costs, and how many of it are a dollar."""
    return ("USD", 1.0) if max((row.get("cost_usd", 0.0) for row in rows), default=0.0) >= CENT else ("µ$", 1e6)


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """The rows' columns that a visitor reads, in a fixed order and with their units."""
    frame = pd.DataFrame(rows)
    shown = [name for name in columns if name in frame]
    sign, per_dollar = unit(rows)
    formats: dict[str, Any] = {}
    for name in shown:
        what, _, measure = name.rpartition("_")
        if measure == "ms":
            formats[name] = st.column_config.NumberColumn(f"{what}, ms", format="%.3f")
        elif measure == "usd":
            frame[name] *= per_dollar
            formats[name] = st.column_config.NumberColumn(f"{what}, {sign}", format="%.4f")
        elif name == "received_at":
            frame[name] = pd.to_datetime(frame[name], utc=True)
            formats[name] = st.column_config.DatetimeColumn("received, UTC", format="YYYY-MM-DD HH:mm:ss")
    st.dataframe(frame, hide_index=True, height="content", column_order=shown, column_config=formats)


def cost_chart(rows: list[dict[str, Any]], by: str, *, time: bool = False) -> None:
    """Cost of each row, in the unit that shows its digits."""
    sign, per_dollar = unit(rows)
    costs = [{by: row[by], "cost": row["cost_usd"] * per_dollar} for row in rows]
    st.altair_chart(charts.bars(costs, by, "cost", sign, time=time), alt=f"Cost by {by}")


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
    with left:
        cost_chart(by_model, "model")
    right.markdown("**Cost by day**")
    with right:
        cost_chart(by_day, "day", time=True)
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
