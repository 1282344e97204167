"""Models and their cards: what is served, and the evidence behind it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import layout, session
from dashboard.client import Model
from dashboard.highlight import facts, literal

NAME = "models"


def score_of(model: Model) -> str:
    """``accuracy 0.989 (floor 0.985)`` of the first evaluation; a dash where nothing was measured."""
    evaluations = model.card.get("evaluations") or ()
    return _score(evaluations[0]) if evaluations else "–"


def _score(evaluation: Mapping[str, Any]) -> str:
    value = evaluation.get("value")
    measured = f"{value:.4g}" if value is not None else "not measured"
    return f"{evaluation['metric']} {measured} (floor {evaluation['floor']:g})"


def overview(models: list[Model]) -> pd.DataFrame:
    """One row a model."""
    return pd.DataFrame(
        [
            {
                "ready": model.ready,
                "model": model.name,
                "task": model.card.get("task") or "raw tensors",
                "format": _format(model.card),
                "score": score_of(model),
                "size": _size(model.card),
                "licence": model.card.get("licence"),
                "architecture": model.card.get("architecture"),
            }
            for model in models
        ]
    )


def _format(card: Mapping[str, Any]) -> str:
    quantisation = card.get("quantisation", "none")
    return str(card.get("format")) + ("" if quantisation == "none" else f", {quantisation.removeprefix('dynamic-')}")


def _size(card: Mapping[str, Any]) -> str:
    evidence = card.get("evidence")
    if not evidence:
        return "–"
    size = evidence["model_bytes"]
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} B"


def _built(evidence: Mapping[str, Any]) -> str:
    moment = dt.datetime.fromisoformat(evidence["built_at"])
    return f"{moment:%Y-%m-%d %H:%M} UTC, in {evidence['build_seconds']:.1f} s"


def card(model: Model) -> None:
    """Everything on one model."""
    about = model.card
    layout.big(model.title)
    with st.container(horizontal=True):
        st.badge("ready" if model.ready else "not ready", color="green" if model.ready else "orange")
        for task in model.tasks:
            st.badge(task, color="blue")
        st.badge(_format(about), color="gray")
    layout.plain(str(about.get("description") or ""))
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**What it is**")
        source = about.get("source") or {}
        trunk = f" on {source['trunk']}" if source.get("trunk") else ""
        about_it = {
            "Architecture": about.get("architecture"),
            "Source": f"{source.get('kind')}: {source.get('name')}{trunk}",
            "Languages": ", ".join(model.languages) or "–",
            "Licence": about.get("licence"),
            "Largest batch": about.get("max_batch_size"),
            "Inputs": _tensors(about.get("inputs")),
            "Outputs": _tensors(about.get("outputs")),
        }
        _facts(about_it)
    with right:
        st.markdown("**Evidence of the last build**")
        evidence = about.get("evidence")
        if evidence:
            _facts(
                {
                    "Largest difference from the source model": f"{evidence['parity_max_abs_error']:.2g} "
                    f"in {evidence['parity_cases']} cases",
                    "Golden answers given": evidence["golden_passed"],
                    "Size": _size(about),
                    "Built": _built(evidence),
                    "SHA-256": evidence["model_sha256"][:16] + "…",
                }
            )
        else:
            st.caption("This model has no build evidence.")
        evaluations = about.get("evaluations") or ()
        if evaluations:
            st.markdown("**Measured scores**")
            _facts({f"{item['dataset']} ({item['split']})": _score(item) for item in evaluations})
    if about.get("notes"):
        st.caption(literal(str(about["notes"])))
    if about.get("labels"):
        with st.expander(f"{len(about['labels'])} labels"):
            st.dataframe(pd.DataFrame({"label": list(about["labels"])}), height=260)


def _tensors(specs: Any) -> str:
    return ", ".join(f"{spec['name']} {spec['datatype']} {list(spec['shape'])}" for spec in specs or ())


def _facts(items: Mapping[str, Any]) -> None:
    st.html(facts({name: "–" if value is None else str(value) for name, value in items.items()}))


layout.head("Models", "What is served, and what was measured before it was.")
if not session.key():
    st.info("Enter an API key in the sidebar to see the models that it may use.", icon=":material/key:")
else:
    served: list[Model] | None = None
    with layout.failures():
        served = session.models()
    if served:
        st.dataframe(
            overview(served), hide_index=True, height="content",
            column_config={"ready": st.column_config.CheckboxColumn(width="small")},
        )  # fmt: skip
        by_name = {model.name: model for model in served}
        with st.container(border=True):
            card(by_name[st.selectbox("Card", list(by_name), key=f"{NAME}.card") or served[0].name])
    elif served is not None:
        st.info("This key may use no model, or none is served.", icon=":material/inbox:")
