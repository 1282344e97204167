"""Start: what this is, whether the gateway is up, and where to go."""

from __future__ import annotations

import streamlit as st

from dashboard import layout, session
from dashboard.client import GatewayFailure

layout.head("Tidegate", "Models as a service: NVIDIA Triton behind one authenticated, metered API.")

TASKS = [
    ("views/image_classification.py", "Image classification", ":material/image:", "What is in this picture?"),
    (
        "views/text_classification.py",
        "Sentiment and topics",
        ":material/sentiment_satisfied:",
        "Good or bad? Which kind?",
    ),
    ("views/entities.py", "Named entities", ":material/person_pin:", "Who, where and what is named?"),
    ("views/question_answering.py", "Question answering", ":material/quiz:", "Where does the text say it?"),
    ("views/translation.py", "Translation", ":material/translate:", "Chinese → English → French"),
    ("views/similarity.py", "Sentence similarity", ":material/grid_on:", "Which sentences mean the same?"),
    ("views/zero_shot.py", "Zero-shot labels", ":material/label:", "Your own labels, no training"),
]


def health() -> None:
    """Gateway, models and key, one box each."""
    gateway, models, key = st.columns(3)
    with gateway.container(border=True, height="stretch"):
        st.markdown("**Gateway**")
        try:
            if session.client().ready():
                st.badge("ready", icon=":material/check:", color="green")
            else:
                st.badge("up, not ready", icon=":material/schedule:", color="orange")
        except GatewayFailure as failure:
            st.badge("no answer", icon=":material/cloud_off:", color="red")
            st.caption(str(failure))
        st.caption(f"`{session.settings().public_url}`")
    with models.container(border=True, height="stretch"):
        st.markdown("**Models**")
        if not session.key():
            st.badge("key needed", color="gray")
        else:
            with layout.failures():
                served = session.models()
                ready = sum(model.ready for model in served)
                complete = bool(served) and ready == len(served)
                st.badge(
                    f"{ready} of {len(served)} ready",
                    icon=":material/inventory_2:",
                    color="green" if complete else "orange",
                )
        st.page_link("views/models.py", label="Models and their cards")
    with key.container(border=True, height="stretch"):
        st.markdown("**Key**")
        if session.key():
            st.badge("in use", icon=":material/key:", color="green")
        else:
            st.badge("none yet", icon=":material/key_off:", color="gray")
            st.caption("Enter one in the sidebar. `tidegate keys create` makes one.")
        st.page_link("views/usage.py", label="Usage and cost")


health()
st.subheader("Try a model", anchor=False)
for row in range(0, len(TASKS), 4):
    for column, (path, title, icon, question) in zip(st.columns(4), TASKS[row : row + 4], strict=False):
        with column.container(border=True, height="stretch"):
            st.page_link(path, label=f"**{title}**", icon=icon)
            st.caption(question)
st.caption(
    "Every answer comes with the time each stage took, what the request cost, and the `curl` and Python lines that "
    "ask for the same without this page."
)
