"""Question answering: the answer is a span of the context, marked where it stands."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import examples, layout, session, snippets
from dashboard.client import Model, Span
from dashboard.highlight import Mark, marked

NAME = "question_answering"
ANSWERS = 3
BEST = "#14a394"


def answer(model: Model, question: str, context: str) -> layout.Shown[list[Span]]:
    """Ask the gateway."""
    found = session.client().answer(model.name, question, context, top_k=ANSWERS)
    inputs = {"question": question, "context": context}
    snippet = snippets.for_text(
        session.settings().public_url, model.name, {"inputs": inputs, "parameters": {"top_k": ANSWERS}},
        method="question_answering", options={**inputs, "top_k": ANSWERS},
    )  # fmt: skip
    return layout.Shown(found, model.name, context, snippet)


def show(context: str, spans: list[Span]) -> None:
    """The best answer, marked in its context, and the runners-up."""
    if not spans or not spans[0].answer:
        st.info("The text does not seem to answer this question.", icon=":material/search_off:")
        layout.plain(context)
        return
    best = spans[0]
    layout.big(context[best.start : best.end])
    st.html(marked(context, [Mark(best.start, best.end, f"{best.score:.2f}", BEST)]))
    score = st.column_config.ProgressColumn("score", format="%.3f", min_value=0, max_value=1)
    table = pd.DataFrame([{"answer": span.answer, "score": span.score} for span in spans])
    text = st.column_config.TextColumn("answer", width=320)  # a long one must not push the scores out of sight
    st.dataframe(table, hide_index=True, column_config={"answer": text, "score": score})


layout.head("Question answering", "Ask a text. The answer is a piece of it, marked where it stands.")
left, right = layout.columns()
with left:
    model = layout.choose_model("question-answering", name=NAME)
    if model:
        (asked, read), number = layout.example(NAME, examples.QUESTIONS)
        question = st.text_input("Question", asked, key=f"{NAME}.question.{number}", max_chars=500)
        context = st.text_area("Text", read, key=f"{NAME}.context.{number}", height=220, max_chars=20_000)
        ready = bool(question.strip() and context.strip())
        if st.button("Answer", type="primary", disabled=not ready, key=f"{NAME}.run"):
            layout.ask(NAME, answer, model, question, context)
with right:
    shown: layout.Shown[list[Span]] | None = layout.kept(NAME, "The answer, marked in its text, appears here.")
    if shown:
        show(shown.asked, shown.answer.value)
        layout.metering(shown)
