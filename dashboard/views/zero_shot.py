"""Zero-shot classification: labels of one's own, scored by sentence embeddings."""

from __future__ import annotations

import streamlit as st

from dashboard import charts, examples, layout, session, snippets
from dashboard.client import Model, Score

NAME = "zero_shot"
TASK = "zero-shot-classification"
MAX_LABELS = 20


def classify(model: Model, text: str, labels: list[str], several: bool) -> layout.Shown[list[Score]]:
    """Ask the gateway."""
    answer = session.client().zero_shot(model.name, text, labels, multi_label=several)
    options = {"candidate_labels": labels, "multi_label": several}
    snippet = snippets.for_text(
        session.settings().public_url, model.name, {"inputs": text, "parameters": options},
        method="zero_shot_classification", arguments=[text], options=options, task=TASK,
    )  # fmt: skip
    return layout.Shown(answer, model.name, text, snippet)


layout.head("Zero-shot labels", "Sort a text under labels that no model was trained on: your own.")
left, right = layout.columns()
with left:
    model = layout.choose_model(TASK, name=NAME)
    if model:
        (example, suggested), number = layout.example(NAME, examples.ZERO_SHOT)
        text = st.text_area("Text", example, key=f"{NAME}.text.{number}", height=120, max_chars=5000)
        entered = st.text_input("Labels, separated by commas", suggested, key=f"{NAME}.labels.{number}", max_chars=1000)
        labels = list(dict.fromkeys(label.strip() for label in entered.split(",") if label.strip()))[:MAX_LABELS]
        several = st.toggle("Several labels may fit", key=f"{NAME}.several")
        if st.button("Classify", type="primary", disabled=not (text.strip() and labels), key=f"{NAME}.run"):
            layout.ask(NAME, classify, model, text, labels, several)
with right:
    shown: layout.Shown[list[Score]] | None = layout.kept(NAME, "The labels and their scores appear here.")
    if shown:
        layout.big(shown.answer.value[0].label)
        layout.plain(shown.asked)
        st.altair_chart(charts.top_scores(shown.answer.value), alt="Labels and their scores")
        layout.metering(shown)
