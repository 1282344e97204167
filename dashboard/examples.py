"""Inputs to try: our own sentences, and the pictures of ``samples/`` (see its LICENCES.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dashboard.uploads import Picture, inspect

SAMPLES = Path(__file__).parent / "samples"
CHECKOUT_FOLDER = "dashboard/samples"
"""Where a checkout has the same pictures; stands in the curl and Python lines."""

FIRST_CHOICES = ("imagenet", "digits", "sentiment", "topics-zh", "translate-zh-en", "translate-en-fr", "embeddings")
"""Models in the order in which the pages offer them; all others follow by name."""

PHOTOS = {"Cat": "cat.jpg", "Coffee": "coffee.jpg", "Rocket": "rocket.jpg", "Astronaut": "astronaut.jpg"}
DIGITS = {str(digit): f"digit-{digit}.png" for digit in range(10)}

SENTIMENT = {
    "Delighted": "A warm, funny and beautifully acted film that I would happily watch again tomorrow.",
    "Bored": "Two hours of clumsy dialogue and not one character worth caring about.",
    "In between": "The first half drags, but the ending is so good that I forgave it everything.",
}
REVIEWS_ZH = {
    "书籍": "这本书写得很好，故事感人，孩子读了好几遍都舍不得放下。",
    "酒店": "房间很干净，前台服务热情，离地铁站也近，下次还会入住。",
    "水果": "苹果很新鲜，又脆又甜，个头也大，家里人都爱吃。",
    "衣服": "衣服面料舒服，尺码合适，就是颜色和图片有一点色差。",
    "平板": "平板屏幕清晰，运行流畅，电池用一整天也没有问题。",
    "洗发水": "洗发水味道好闻，洗完头发很顺滑，去屑效果也不错。",
}
ENTITIES = {
    "Physics": (
        "Marie Curie moved from Warsaw to Paris in 1891 and taught at the Sorbonne, where she won two Nobel Prizes."
    ),
    "Football": (
        "Lionel Messi left Barcelona for Paris Saint-Germain before he joined Inter Miami in the United States."
    ),
    "Companies": ("Tim Cook announced in Cupertino that Apple will open a new office in Munich next to Siemens."),
}
QUESTIONS = {
    "Bridge": (
        "When was the bridge opened?",
        (
            "The Golden Gate Bridge is a suspension bridge spanning the Golden Gate, the strait that connects San "
            "Francisco Bay and the Pacific Ocean. Construction began in January 1933, and the bridge was opened to "
            "pedestrians on May 27, 1937. Its chief engineer was Joseph Strauss."
        ),
    ),
    "Honey": (
        "What keeps honey from spoiling?",
        (
            "Honey found in Egyptian tombs was still edible after three thousand years. Its low water content and high "
            "acidity keep bacteria from growing in it, and bees add an enzyme that produces hydrogen peroxide."
        ),
    ),
    "Tides": (
        "What causes the tides?",
        (
            "Twice a day the sea rises and falls along most coasts. The tides are caused mainly by the gravity of the "
            "Moon, and to a lesser degree by that of the Sun. When both pull in line, at new and full moon, the spring "
            "tides are the highest."
        ),
    ),
}
TRANSLATION = {
    "zh-en": {
        "Weather": "今天天气很好，我们去公园走走吧。",
        "Train": "我不知道火车什么时候到。",
        "Book": "这本书是我朋友送给我的。",
        "Breakfast": "你早饭吃了什么？",
    },
    "en-fr": {
        "Dog": "A brown dog is running through the snow.",
        "Market": "Two women are buying vegetables at a market.",
        "Boy": "A young boy in a red shirt is playing football on the beach.",
        "Musician": "A man is playing the guitar in front of a crowd.",
    },
}
SENTENCES = (
    "The weather is lovely today.\n"
    "It's so sunny outside!\n"
    "He drove to the stadium.\n"
    "The match begins at eight in the arena.\n"
    "How do I reset my password?\n"
    "I forgot my login and cannot sign in."
)
ZERO_SHOT = {
    "Support": ("My parcel was due on Monday and still has not arrived.", "delivery, billing, returns, praise"),
    "News": ("The central bank raised interest rates for the third time this year.", "economy, sport, science, travel"),
    "Kitchen": ("Simmer the tomatoes with garlic and basil for twenty minutes.", "cooking, gardening, music, politics"),
}


@dataclass(slots=True, frozen=True)
class Source:
    """A picture and the path that its curl line names."""

    picture: Picture
    path: str
    note: str


def sample(file_name: str) -> Source:
    """A picture of ``samples/``."""
    picture = inspect(file_name, (SAMPLES / file_name).read_bytes())
    return Source(picture, f"{CHECKOUT_FOLDER}/{file_name}", "The path is that of a Tidegate checkout.")
