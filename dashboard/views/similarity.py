"""Embeddings and similarity: sentences become vectors, and the matrix shows which mean the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import streamlit as st

from dashboard import charts, examples, layout, session, snippets
from dashboard.client import Model
from dashboard.highlight import facts

NAME = "similarity"
MAX_SENTENCES = 12


def embed(model: Model, sentences: list[str]) -> layout.Shown[npt.NDArray[np.float32]]:
    """Ask the gateway for the sentences' vectors."""
    answer = session.client().embed(model.name, sentences)
    snippet = snippets.for_text(
        session.settings().public_url, model.name, {"inputs": sentences, "normalize": True},
        method="feature_extraction", arguments=[sentences], options={"normalize": True}, task="feature-extraction",
    )  # fmt: skip
    return layout.Shown(answer, model.name, "\n".join(sentences), snippet)


def show(sentences: list[str], vectors: npt.NDArray[np.float32]) -> None:
    """The matrix, and the pair of different sentences that are closest."""
    cosines = vectors @ vectors.T
    st.altair_chart(charts.similarity_matrix(sentences, cosines), alt="Cosine similarity of each pair of sentences")
    st.html(facts({str(number): sentence for number, sentence in enumerate(sentences, 1)}))
    if len(sentences) > 1:
        row, column = divmod(int(np.argmax(cosines - 2 * np.eye(len(sentences)))), len(sentences))
        st.markdown(f"Closest: **{row + 1}** and **{column + 1}**, cosine {cosines[row, column]:.3f}.")
    st.caption(f"{vectors.shape[0]} vectors of {vectors.shape[1]} dimensions, length 1.")


layout.head(
    "Embeddings and similarity", "Each sentence becomes a vector; the closer two vectors, the closer the meaning."
)
left, right = layout.columns()
with left:
    model = layout.choose_model("feature-extraction", name=NAME)
    if model:
        label = f"Sentences, one a line (up to {MAX_SENTENCES})"
        text = st.text_area(label, examples.SENTENCES, key=f"{NAME}.text", height=220, max_chars=5000)
        sentences = [line.strip() for line in text.splitlines() if line.strip()]
        if len(sentences) > MAX_SENTENCES:
            st.warning(f"Only the first {MAX_SENTENCES} of {len(sentences)} sentences are compared.")
        if st.button("Compare", type="primary", disabled=not sentences, key=f"{NAME}.run"):
            layout.ask(NAME, embed, model, sentences[:MAX_SENTENCES])
with right:
    shown: layout.Shown[npt.NDArray[np.float32]] | None = layout.kept(NAME, "The similarity matrix appears here.")
    if shown:
        show(shown.asked.split("\n"), shown.answer.value)
        layout.metering(shown)
