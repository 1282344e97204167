"""Train translate-zh-en on the Tatoeba pairs: python -m zoo.training.translate_zh_en"""

from zoo.training.common import parse_options
from zoo.training.datasets import read_tatoeba
from zoo.training.translation import Plan, run

NAME = "translate-zh-en"


def main() -> None:
    """Train, save, measure the weights as they are kept, and write the record."""
    options = parse_options(f"Train {NAME}.", minutes=85)
    pairs, check = read_tatoeba(options.data, "train"), read_tatoeba(options.data, "validation")
    run(NAME, pairs, check, options, Plan())


if __name__ == "__main__":
    main()
