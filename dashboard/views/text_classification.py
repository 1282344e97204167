"""Text classification: sentiment of English sentences, kinds of Chinese product reviews."""

from __future__ import annotations

import streamlit as st

from dashboard import charts, examples, layout, session, snippets
from dashboard.client import Model, Score

NAME = "text_classification"
BARS = 10


def classify(model: Model, text: str) -> layout.Shown[list[Score]]:
    """Ask the gateway about the text."""
    answer = session.client().classify_text(model.name, text, top_k=BARS)
    body = {"inputs": text, "parameters": {"top_k": BARS}}
    snippet = snippets.for_text(
        session.settings().public_url, model.name, body, method="text_classification", arguments=[text],
        options={"top_k": BARS},
    )  # fmt: skip
    return layout.Shown(answer, model.name, text, snippet)


layout.head("Sentiment and topics", "Is it praise or blame? And in Chinese: which kind of product is reviewed?")
left, right = layout.columns()
with left:
    model = layout.choose_model("text-classification", name=NAME)
    if model:
        language = "zh" if "zh" in model.languages else "en"
        texts = examples.REVIEWS_ZH if language == "zh" else examples.SENTIMENT
        example, number = layout.example(f"{NAME}.{language}", texts)
        text = st.text_area("Text", example, key=f"{NAME}.text.{language}.{number}", height=140, max_chars=5000)
        if st.button("Classify", type="primary", disabled=not text.strip(), key=f"{NAME}.run"):
            layout.ask(NAME, classify, model, text)
with right:
    shown: layout.Shown[list[Score]] | None = layout.kept(NAME, "The labels appear here.")
    if shown:
        layout.big(shown.answer.value[0].label)
        layout.plain(shown.asked)
        st.altair_chart(charts.top_scores(shown.answer.value), alt="Labels and their scores")
        layout.metering(shown)
