"""Translation with attention: Chinese to English, English to French."""

from __future__ import annotations

import streamlit as st

from dashboard import examples, layout, session, snippets
from dashboard.client import Model

NAME = "translation"
LANGUAGES = {"zh": "Chinese", "en": "English", "fr": "French"}


def direction(model: Model) -> str:
    """``zh-en`` and the like: the card's languages in order, source first."""
    return "-".join(model.languages[:2])


def translate(model: Model, text: str) -> layout.Shown[str]:
    """Ask the gateway."""
    answer = session.client().translate(model.name, text)
    snippet = snippets.for_text(
        session.settings().public_url, model.name, {"inputs": text}, method="translation", arguments=[text]
    )
    return layout.Shown(answer, model.name, text, snippet)


layout.head("Translation", "Sentence by sentence, with an encoder-decoder Transformer.")
left, right = layout.columns()
with left:
    model = layout.choose_model("translation", name=NAME)
    if model:
        pair = direction(model)
        st.caption(" → ".join(LANGUAGES.get(code, code) for code in model.languages[:2]))
        example, number = layout.example(f"{NAME}.{pair}", examples.TRANSLATION.get(pair, {"Empty": ""}))
        text = st.text_area("Text", example, key=f"{NAME}.text.{pair}.{number}", height=140, max_chars=5000)
        if st.button("Translate", type="primary", disabled=not text.strip(), key=f"{NAME}.run"):
            layout.ask(NAME, translate, model, text)
with right:
    shown: layout.Shown[str] | None = layout.kept(NAME, "The translation appears here.")
    if shown:
        with st.container(border=True):
            st.caption(f"`{shown.model}`")
            layout.plain(shown.asked)
            layout.big(shown.answer.value)
        layout.metering(shown)
