"""Tiny random language models as Hugging Face folders, with a tokenizer of a few hundred words, made in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parspike.language.folder import quiet

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXT = " ".join(
    f"The {thing} {does} the {other} when the day is {how} and nobody looks at it."
    for thing in ("dog", "river", "teacher", "engine", "little king")
    for does in ("follows", "finds", "carries", "forgets")
    for other in ("boat", "letter", "old house")
    for how in ("long", "cold")
)
"""Some 10 kB of English."""


def words(folder: Path, *, special: str = "gpt") -> int:
    """Write a tokenizer trained on `TEXT` into a folder; the number of its words. special: "gpt" adds no tokens of its
    own, "bert" [CLS] and [SEP]."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    names = ["<pad>", "<unk>", "<end>", "[CLS]", "[SEP]"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=names, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([TEXT], trainer)
    if special == "bert":
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(fast)


def saved(folder: Path, kind: str, seed: int = 0, **options: Any) -> Path:
    """A folder with a tiny network of this class of transformers and its tokenizer; options go to its config."""
    folder.mkdir(parents=True, exist_ok=True)
    size = words(folder, special="bert" if kind.startswith("Bert") else "gpt")
    family = next(name for name in ("GPT2", "Llama", "Bert", "Mixtral") if kind.startswith(name))
    small: dict[str, Any] = {
        "GPT2": {"n_positions": 64, "n_embd": 24, "n_layer": 1, "n_head": 4},
        "Llama": {
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
        },
        "Bert": {
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "Mixtral": {
            "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4,
        },
    }[family]  # fmt: skip
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(vocab_size=size, **{**ends, **small, **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, kind)(config)
        for parameter in model.parameters():  # as made, all scores would be nearly equal
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.3)
    with quiet(transformers):
        model.save_pretrained(folder)
    return folder
