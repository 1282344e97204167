"""Image classification: a sample, an upload or the camera; the five best labels."""

from __future__ import annotations

import streamlit as st

from dashboard import charts, examples, layout, session, snippets
from dashboard.client import Model, Score
from dashboard.highlight import literal
from dashboard.uploads import EXTENSIONS, MAX_BYTES, Refused, inspect

NAME = "image_classification"
SOURCES = ["Sample", "Upload", "Camera"]
PHOTO = "camera.jpg"


def choose_source(model: Model) -> examples.Source | None:
    """The picture to ask about; None if there is none yet or it was refused."""
    way = st.segmented_control("Picture", SOURCES, default=SOURCES[0], key=f"{NAME}.way", required=True)
    if way == "Sample":
        samples = examples.DIGITS if model.grey else examples.PHOTOS
        kind = "digit" if model.grey else "photo"
        chosen = st.pills("Sample", list(samples), default=next(iter(samples)), key=f"{NAME}.{kind}", required=True)
        return examples.sample(samples[chosen])
    if way == "Upload":
        upload = st.file_uploader(
            "A JPEG, PNG or WebP picture",
            type=list(EXTENSIONS),
            key=f"{NAME}.upload",
            max_upload_size=MAX_BYTES // 2**20,
        )
        name, note = upload.name if upload else "", "The path is that of your own file."
    else:
        upload = st.camera_input("Take a picture", key=f"{NAME}.camera")
        name, note = PHOTO, "Save the picture under that name first."
    if upload is None:
        return None
    try:
        picture = inspect(name, upload.getvalue())
    except Refused as refusal:
        st.warning(literal(str(refusal)), icon=":material/block:")
        return None
    return examples.Source(picture, picture.name, note)


def show(source: examples.Source) -> None:
    """The picture with its name and size; of a photo only these, as the camera's own field shows it."""
    picture = source.picture
    caption = literal(f"{picture.name}, {picture.width} × {picture.height}")
    if st.session_state[f"{NAME}.way"] == "Camera":
        st.caption(caption)
    else:
        st.image(picture.data, caption=caption, width=360)


def classify(model: Model, source: examples.Source) -> layout.Shown[list[Score]]:
    """Ask the gateway about the picture."""
    picture = source.picture
    answer = session.client().classify_image(model.name, picture.data, picture.media_type)
    url = session.settings().public_url
    snippet = snippets.for_image(url, model.name, source.path, picture.media_type, source.note)
    return layout.Shown(answer, model.name, picture.name, snippet)


layout.head("Image classification", "What is in the picture? Photographs in 1,000 classes, or one handwritten digit.")
left, right = layout.columns()
with left:
    model = layout.choose_model("image-classification", name=NAME)
    source = choose_source(model) if model else None
    if model:
        if source:
            show(source)
        if st.button("Classify", type="primary", disabled=source is None, key=f"{NAME}.run") and source:
            layout.ask(NAME, classify, model, source)
with right:
    shown: layout.Shown[list[Score]] | None = layout.kept(NAME, "The labels appear here.")
    if shown:
        layout.big(shown.answer.value[0].label)
        st.caption(literal(f"{shown.asked}, seen by {shown.model}"))
        st.altair_chart(charts.top_scores(shown.answer.value), alt="Best labels and their scores")
        layout.metering(shown)
