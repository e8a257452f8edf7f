"""A Hugging Face folder, or a GGUF file, as a network of token numbers alone."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from parspike.errors import FileError, InputError, OptionError, UnsupportedError
from parspike.language.folder import place, quiet, reading, transformers
from parspike.language.rotated import with_rotated_stream
from parspike.language.tokens import Tokenizer

__all__ = ["HEADS", "Head", "LanguageModel", "language"]

Head = Literal["causal", "classes", "hidden", "sentence"]
HEADS: tuple[str, ...] = get_args(Head)
"""What a network returns: scores of the next token at each token; of classes; its last hidden state; one vector a text.
"""
CLASSES = {"causal": "AutoModelForCausalLM", "classes": "AutoModelForSequenceClassification"}


class LanguageModel(nn.Module):
    """A network of token numbers: `model(input_ids)`, (B, tokens) int64, without cache and without dropout.

    It returns, by its `head`: "causal" logits (B, tokens, words), "classes" logits (B, K), "hidden" the last hidden
    state (B, tokens, features), "sentence" one vector a text (B, features): the mean over its tokens, or its first. In
    "classes", "hidden" and "sentence" a token that only fills up (`pad`) is left out of attention and mean.

    net: the network of transformers. context: tokens at most, None where nothing states it. normalise: whether vectors
    of texts have length 1. first: whether such a vector is that of the first token.
    """

    def __init__(
        self, net: nn.Module, head: Head, *, path: str = "", context: int | None = None, pad: int | None = None,
        normalise: bool = False, first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.head, self.path, self.context = net, head, path, context
        self.pad, self.normalise, self.first = pad, normalise, first
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the network's folder, or file. Raises `FileError` where there is none."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.path)
        return self._tokenizer

    @property
    def words(self) -> int:
        """How many token numbers the network knows."""
        config: Any = self.net.config
        return config.get_text_config().vocab_size

    def example(self, samples: int = 2, tokens: int = 16) -> Tensor:
        """Inputs to trace the network with, (samples, tokens): all token numbers differ, none fills up."""
        known = [number for number in range(min(self.words, samples * tokens + 1)) if number != self.pad]
        return torch.tensor([known[k % len(known)] for k in range(samples * tokens)]).view(samples, tokens)

    def rotated(self) -> LanguageModel:
        """A copy that computes the same, its residual stream along other axes, on which no channel is large: encoders
        lose less at few steps (docs/language.md has the figures).

        For causal networks that are built as LLaMA is, with RMS norms, in float32 or float64. Raises
        `UnsupportedError` for others.
        """
        if self.head != "causal":
            raise UnsupportedError(
                f"a network that returns head='{self.head}' would return it along other axes: only causal networks are "
                "rotated"
            )
        made = copy.copy(self)
        made._modules = {**self._modules, "net": with_rotated_stream(self.net, self.example())}
        return made

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.head == "causal":
            return self.net(input_ids=input_ids, use_cache=False).logits
        given: dict[str, Any] = {}
        if self.pad is not None:
            given["attention_mask"] = input_ids.ne(self.pad).long()
        out = self.net(input_ids=input_ids, **given)
        if self.head == "classes":
            return out.logits
        hidden = out.last_hidden_state
        if self.head == "hidden":
            return hidden
        if self.first:
            vector = hidden[:, 0]
        elif self.pad is None:
            vector = hidden.mean(1)
        else:
            mask = given["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            vector = (hidden * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(vector, dim=1) if self.normalise else vector


def language(path: str | os.PathLike[str], head: Head | None = None) -> LanguageModel:
    """Read a language model, an embedder or a classifier of texts, in evaluation mode and float32.

        model = parspike.language("smollm2/")                       # config.json, *.safetensors; or model.gguf
        x = model.tokenizer.sequences("texts/", tokens=256)         # (N, 256)
        snn = parspike.convert(model, calibration=x[:64].split(4), T=4, code="weighted", encode="all")

    path: a local folder as `save_pretrained` writes it, or a GGUF file, whose weights are dequantised. head: what the
    network returns, see `LanguageModel`; by default what the folder was saved for, and "sentence" for folders of
    sentence-transformers. Nothing is downloaded and no code of the folder is run.

    Needs the extra `lm`. Raises `FileError` where there is no network, where it is damaged or lacks weights,
    `UnsupportedError` for networks that write from one text to another (encoder and decoder), `OptionError` for an
    unknown head.
    """
    if head is not None and head not in HEADS:
        raise OptionError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    folder, named = place(path, "network")
    library = transformers(*(["gguf", "accelerate"] if named else []))
    with quiet(library), reading(Path(path), "network"):
        config = library.AutoConfig.from_pretrained(folder, local_files_only=True, **named)
        made = (config.architectures or [""])[0]
        if config.is_encoder_decoder:
            raise UnsupportedError(
                f"{path}: {made or config.model_type} has an encoder and a decoder, which runs once for each word: "
                "give a network that reads tokens once (a causal language model, an embedder, a classifier)"
            )
        pooled = None if named else _pooling(folder)
        head = head or _head(made, pooled is not None, bool(named))
        net: Any = _loaded(library, folder, named, head, Path(path))
    pooled = pooled or {}
    pad = net.config.pad_token_id
    decoder = bool(getattr(net.config, "is_decoder", False)) or made.endswith(("ForCausalLM", "LMHeadModel"))
    if head == "causal" or decoder or pad is None or pad == net.config.eos_token_id:
        pad = None
    if head == "causal":
        net.config.pad_token_id = None  # it remarks on padding, which changes nothing before it
    stated = [getattr(net.config.get_text_config(), "max_position_embeddings", None), pooled.get("most")]
    if not named and (folder / "tokenizer_config.json").is_file():
        most = _json(folder / "tokenizer_config.json").get("model_max_length")
        stated.append(int(most) if isinstance(most, (int, float)) and most < 1 << 31 else None)
    model = LanguageModel(
        net, head, path=str(Path(path).resolve()), context=min((n for n in stated if n), default=None), pad=pad,
        normalise=head == "sentence" and pooled.get("normalise", False),
        first=head == "sentence" and pooled.get("first", False),
    )  # fmt: skip
    return model.eval()


def _head(made: str, pooled: bool, gguf: bool) -> Head:
    if pooled:
        return "sentence"
    if made.endswith(("ForCausalLM", "LMHeadModel")) or (gguf and not made.endswith("Model")):
        return "causal"
    return "classes" if made.endswith("ForSequenceClassification") else "hidden"


def _loaded(library: Any, folder: Path, named: dict[str, str], head: Head, path: Path) -> nn.Module:
    """The network with its weights. Raises `FileError` where the file lacks some."""
    kind = getattr(library, CLASSES.get(head, "AutoModel"))
    how = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True, **named}
    if not named:
        how["use_safetensors"] = True
    try:
        net, info = kind.from_pretrained(folder, attn_implementation="sdpa", **how)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        net, info = kind.from_pretrained(folder, attn_implementation="eager", **how)
    # A pooler is not read where the last hidden state is; every other tensor that is missing would be random.
    missing = [key for key in info["missing_keys"] if head not in ("hidden", "sentence") or "pooler" not in key]
    wrong = [str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ())]
    if missing or wrong:
        names = sorted([*missing, *wrong])
        raise FileError(
            f"{path}: {len(names)} tensors that {type(net).__name__} needs are missing or of another shape, "
            f"{names[0]} first: it was saved for something else, or is not complete"
        )
    if type(net)._can_set_experts_implementation():
        net.set_experts_implementation("batched_mm")  # other forms loop over experts, or sort by them
    config = net.config
    if getattr(config, "quantization_config", None) is not None and named:
        del config.quantization_config  # its tensors are floating numbers now
    return _with_linear(net)


def _with_linear(net: nn.Module) -> nn.Module:
    """GPT-2's linear layers hold their weights turned round and read all tokens of all samples as one batch. As plain
    linear layers the features of each stay where they are, for encoders and re-fits."""
    for name, layer in list(net.named_modules()):
        if type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils":
            weight, bias = (cast(Tensor, getattr(layer, one)).detach() for one in ("weight", "bias"))
            made = nn.utils.skip_init(nn.Linear, *weight.shape)
            made.weight, made.bias = nn.Parameter(weight.t().contiguous()), nn.Parameter(bias)
            net.set_submodule(name, made)
    return net


def _pooling(folder: Path) -> dict[str, Any] | None:
    """How a folder of sentence-transformers makes one vector of a text; None where the folder is none."""
    if not (folder / "modules.json").is_file():
        return None
    found: dict[str, Any] = {}
    for module in _json(folder / "modules.json"):
        kind, at = str(module.get("type", "")).rpartition(".")[2], folder / str(module.get("path", ""))
        if kind == "Normalize":
            found["normalise"] = True
        elif kind == "Pooling":
            said = _json(at / "config.json")
            modes = {key for key, value in said.items() if key.startswith("pooling_mode_") and value is True}
            if not modes <= {"pooling_mode_mean_tokens", "pooling_mode_cls_token"} or len(modes) != 1:
                raise UnsupportedError(
                    f"{folder}: it pools by {', '.join(sorted(modes)) or 'nothing known'}; parspike makes the vector "
                    "of a text from the mean over its tokens or from its first: give head='hidden' (hf:PATH:hidden)"
                )
            found["first"] = "pooling_mode_cls_token" in modes
        elif kind not in ("Transformer", "Dropout"):
            raise UnsupportedError(
                f"{folder}: {kind} behind the transformer is not read: give head='hidden' (hf:PATH:hidden) for what "
                "stands before it"
            )
    if (folder / "sentence_bert_config.json").is_file():
        found["most"] = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from error
