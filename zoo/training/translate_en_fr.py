"""Train translate-en-fr on Multi30k captions: python -m zoo.training.translate_en_fr"""

from zoo.training.common import parse_options
from zoo.training.datasets import read_multi30k
from zoo.training.translation import Plan, run

NAME = "translate-en-fr"
PLAN = Plan(
    vocabulary=5_000,
    feed_forward=512,
    decoder_layers=2,
    dropout=0.15,
    piece_dropout=0.05,
    consistency=0.0,
    rate=1.0e-3,
    warmup=500,
    tokens=1_200,
    averaging=0.999,
    evaluate_every=2,
)


def main() -> None:
    """Train, save, measure the weights as they are kept, and write the record."""
    options = parse_options(f"Train {NAME}.", minutes=20)
    pairs, check = read_multi30k(options.data, "train"), read_multi30k(options.data, "validation")
    run(NAME, pairs, check, options, PLAN)


if __name__ == "__main__":
    main()
