"""The dashboard: ``streamlit run dashboard/app.py``, configured by ``TIDEGATE_DASHBOARD_*`` (dashboard/settings.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

_HERE = Path(__file__).resolve().parent
if str(_HERE.parent) not in sys.path:  # `streamlit run` puts this folder on the path, not the one above it
    sys.path.insert(0, str(_HERE.parent))

from dashboard import layout, session  # noqa: E402
from dashboard.settings import ConfigurationError  # noqa: E402

PAGES = {
    "Tidegate": [
        st.Page("views/start.py", title="Start", icon=":material/home:", default=True),
        st.Page("views/models.py", title="Models", icon=":material/inventory_2:"),
        st.Page("views/usage.py", title="Usage and cost", icon=":material/payments:"),
    ],
    "Pictures": [
        st.Page("views/image_classification.py", title="Image classification", icon=":material/image:"),
    ],
    "Texts": [
        st.Page("views/text_classification.py", title="Sentiment and topics", icon=":material/sentiment_satisfied:"),
        st.Page("views/entities.py", title="Named entities", icon=":material/person_pin:"),
        st.Page("views/question_answering.py", title="Question answering", icon=":material/quiz:"),
        st.Page("views/translation.py", title="Translation", icon=":material/translate:"),
        st.Page("views/similarity.py", title="Embeddings and similarity", icon=":material/grid_on:"),
        st.Page("views/zero_shot.py", title="Zero-shot labels", icon=":material/label:"),
    ],
}

# A file of ours: for a Material icon the visitor's browser would ask a font server elsewhere.
st.set_page_config(page_title="Tidegate", page_icon=_HERE / "favicon.svg", layout="wide")
st.html("<style>[data-testid=stMainBlockContainer]{padding-top:3.2rem}</style>")
st.logo(_HERE / "logo.svg", size="large")

try:
    session.settings()
except ConfigurationError as error:
    st.error(str(error), icon=":material/settings:")
    st.stop()

page = st.navigation(PAGES)
layout.sidebar()
page.run()
