"""Named entities: people, places, organisations and more, marked in the text."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import examples, layout, session, snippets
from dashboard.client import Entity, Model
from dashboard.highlight import Mark, colours_by_label, marked

NAME = "entities"
AGGREGATION = {"aggregation_strategy": "simple"}


def find(model: Model, text: str) -> layout.Shown[list[Entity]]:
    """Ask the gateway for the names in the text."""
    answer = session.client().entities(model.name, text)
    snippet = snippets.for_text(
        session.settings().public_url, model.name, {"inputs": text, "parameters": AGGREGATION},
        method="token_classification", arguments=[text], options=AGGREGATION,
    )  # fmt: skip
    return layout.Shown(answer, model.name, text, snippet)


def show(text: str, entities: list[Entity]) -> None:
    """The marked text and the list of names."""
    if not entities:
        st.info("No names found in this text.", icon=":material/search_off:")
        layout.plain(text)
        return
    colours = colours_by_label(entity.group for entity in entities)
    marks = [Mark(entity.start, entity.end, entity.group, colours[entity.group]) for entity in entities]
    st.html(marked(text, marks))
    table = pd.DataFrame(
        [
            {"name": text[e.start : e.end], "kind": e.group, "score": e.score, "from": e.start, "to": e.end}
            for e in entities
        ]
    )
    score = st.column_config.ProgressColumn("score", format="%.3f", min_value=0, max_value=1)
    st.dataframe(table, hide_index=True, column_config={"score": score})


layout.head("Named entities", "Who, where and what is named in a text?")
left, right = layout.columns()
with left:
    model = layout.choose_model("token-classification", name=NAME)
    if model:
        example, number = layout.example(NAME, examples.ENTITIES)
        text = st.text_area("Text", example, key=f"{NAME}.text.{number}", height=160, max_chars=5000)
        if st.button("Find names", type="primary", disabled=not text.strip(), key=f"{NAME}.run"):
            layout.ask(NAME, find, model, text)
with right:
    shown: layout.Shown[list[Entity]] | None = layout.kept(NAME, "The text with its names marked appears here.")
    if shown:
        show(shown.asked, shown.answer.value)
        layout.metering(shown)
