"""Charts of the pages, as Altair specifications; colours work on light and on dark ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd

from dashboard.client import Metering, Score

ACCENT = "#14a394"
STAGE_COLOURS = {
    "auth": "#94a3b8",
    "admit": "#64748b",
    "preprocess": "#f59e0b",
    "infer": "#14a394",
    "postprocess": "#8b5cf6",
    "record": "#ec4899",
    "other": "#78716c",
    "network": "#3b82f6",
}


def top_scores(scores: Sequence[Score]) -> alt.LayerChart:
    """Horizontal bars, best label on top; scores 0 to 1."""
    frame = pd.DataFrame({"label": [s.label for s in scores], "score": [s.score for s in scores]})
    base = alt.Chart(frame).encode(
        y=alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=220, ticks=False, domain=False)),
        x=alt.X("score:Q", scale=alt.Scale(domain=[0, 1.12]), axis=None),
        tooltip=[alt.Tooltip("label:N"), alt.Tooltip("score:Q", format=".4f")],
    )
    bars = base.mark_bar(color=ACCENT, cornerRadiusEnd=4, height=18)
    numbers = base.mark_text(align="left", dx=5, color="#8896a5").encode(text=alt.Text("score:Q", format=".1%"))
    chart: alt.LayerChart = (bars + numbers).properties(height=34 * max(1, len(scores)))
    return chart


def latency_split(metering: Metering) -> alt.Chart:
    """One stacked bar: where the milliseconds of a request went, in the order they passed."""
    split = metering.split()
    frame = pd.DataFrame(
        {"stage": [name for name, _ in split], "ms": [ms for _, ms in split], "order": range(len(split))}
    )
    names = [name for name, _ in split]
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_bar(height=26)
        .encode(
            x=alt.X(
                "sum(ms):Q",
                title="milliseconds",
                scale=alt.Scale(nice=False),  # the bar is the time: it fills the width, and no label hangs over its end
                axis=alt.Axis(grid=False, tickCount=6, labelBound=True),
            ),
            color=alt.Color(
                "stage:N",
                sort=names,
                scale=alt.Scale(domain=names, range=[STAGE_COLOURS[name] for name in names]),
                legend=alt.Legend(orient="bottom", title=None, columns=4, symbolType="square", offset=2),
            ),
            order=alt.Order("order:Q"),
            tooltip=[alt.Tooltip("stage:N"), alt.Tooltip("ms:Q", format=".2f", title="ms")],
        )
        .properties(height=190)
    )
    return chart


def similarity_matrix(labels: Sequence[str], matrix: npt.NDArray[np.float32]) -> alt.LayerChart:
    """Heat map of cosine similarities; ``matrix`` is float32 ``[texts, texts]``, -1 to 1."""
    count = len(labels)
    rows, columns = np.divmod(np.arange(count * count), count)
    frame = pd.DataFrame(
        {
            "row": rows + 1,
            "column": columns + 1,
            "first": [labels[row] for row in rows],
            "second": [labels[column] for column in columns],
            "cosine": matrix.reshape(-1).astype(float),
        }
    )
    base = alt.Chart(frame).encode(
        x=alt.X("column:O", title=None, axis=alt.Axis(orient="top", labelAngle=0, ticks=False, domain=False)),
        y=alt.Y("row:O", title=None, axis=alt.Axis(ticks=False, domain=False)),
        tooltip=["first:N", "second:N", alt.Tooltip("cosine:Q", format=".4f")],
    )
    cells = base.mark_rect(cornerRadius=3).encode(
        color=alt.Color(
            "cosine:Q",
            scale=alt.Scale(domain=[0, 1], clamp=True, range=["#e8f1ef", "#14a394", "#0b4a44"]),
            legend=alt.Legend(title="cosine", orient="right"),
        )
    )
    numbers = base.mark_text(fontSize=13).encode(
        text=alt.Text("cosine:Q", format=".2f"),
        color=alt.condition("datum.cosine > 0.4", alt.value("#ffffff"), alt.value("#16212b")),
    )
    chart: alt.LayerChart = (cells + numbers).properties(height=max(180, 56 * count))
    return chart


def bars(rows: Sequence[Mapping[str, Any]], x: str, y: str, title: str, *, time: bool = False) -> alt.Chart:
    """Vertical bars of ``y`` by ``x``; ``time`` if ``x`` is a day (ISO 8601)."""
    frame = pd.DataFrame(rows)
    if time:
        frame[x] = pd.to_datetime(frame[x]).dt.strftime("%Y-%m-%d")
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_bar(color=ACCENT, cornerRadiusEnd=3, size=28)
        .encode(
            x=alt.X(
                f"{x}:N",
                sort=None if time else "-y",
                title=None,
                axis=alt.Axis(labelAngle=-30, labelLimit=140, labelOverlap=False),
            ),
            y=alt.Y(f"{y}:Q", title=title),
            tooltip=[f"{x}:N", alt.Tooltip(f"{y}:Q", title=title)],
        )
        .properties(height=280)
    )
    return chart
