"""Language models: folders of Hugging Face as networks, text as tokens, perplexity, and text that networks write. All
networks are made here, tiny and random; nothing is downloaded."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import language_models
import numpy as np
import pytest
import torch
from language_models import TEXT, saved
from torch import Tensor, nn

import parspike
from parspike.cli import app, spec
from parspike.errors import FileError, InputError, MissingExtraError, OptionError, TraceError, UnsupportedError
from parspike.language import HEADS, pieces
from parspike.language.rotated import orthogonal

transformers = language_models.transformers


def cli(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = app([str(argument) for argument in arguments], standalone_mode=False)
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks by class, and text/a.txt."""
    root = tmp_path_factory.mktemp("language")
    for kind in ("GPT2LMHeadModel", "LlamaForCausalLM", "BertModel", "BertForSequenceClassification"):
        saved(root / kind, kind)
    (root / "text").mkdir()
    (root / "text" / "a.txt").write_text(TEXT)
    return root


@pytest.fixture(scope="module")
def llama(folders: Path) -> parspike.LanguageModel:
    return parspike.language(folders / "LlamaForCausalLM")


@pytest.fixture(scope="module")
def converted(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama, converted on the command line."""
    file = tmp_path_factory.mktemp("converted") / "net.parspike"
    data = ["--data", folders / "text", "--tokens", 12, "--calibration-images", 16]
    code = app([str(a) for a in ("convert", f"hf:{folders / 'LlamaForCausalLM'}", *data, "-T", 8, "--recipe", "max",
                                 "-o", file)], standalone_mode=False)  # fmt: skip
    assert code == 0
    return file


# ----------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("kind", "auto", "head", "field"),
    [
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "causal", "logits"),
        ("LlamaForCausalLM", "AutoModelForCausalLM", "causal", "logits"),
        ("BertModel", "AutoModel", "hidden", "last_hidden_state"),
        ("BertForSequenceClassification", "AutoModelForSequenceClassification", "classes", "logits"),
    ],
)
def test_a_folder_gives_the_network_that_transformers_loads(
    folders: Path, kind: str, auto: str, head: str, field: str
) -> None:
    model = parspike.language(folders / kind)
    own = getattr(transformers, auto).from_pretrained(folders / kind, attn_implementation="eager").eval()
    x = model.example(3, 10)
    assert (model.head, model.context, model.training) == (head, 64, False)
    assert torch.allclose(model(x), getattr(own(x), field), atol=1e-5)
    assert len(x.unique()) == 30
    assert model.pad is None or 0 not in x  # what fills up is left out


def test_every_linear_layer_of_gpt2_is_driven_by_spikes(folders: Path) -> None:
    """Its own layers are of a kind that has features and places in one dimension."""
    model = parspike.language(folders / "GPT2LMHeadModel")
    graph = parspike.plan(model, model.example(2, 6), encode="all").graph
    linear = [node for node in graph.nodes if node.target == "aten.linear.default"]
    assert len(linear) == 5
    for node in linear:
        assert graph.by_name[node.refs[0]].role.name in ("NEURON", "SYNAPSE"), node.layer
        assert graph.by_name[node.refs[0]].target != "aten.layer_norm.default", node.layer


@pytest.mark.parametrize("tied", [True, False])
def test_a_rotated_stream_is_the_same_function(tmp_path: Path, tied: bool) -> None:
    """Would catch a layer that was forgotten, a bias along the old axes, weights of a norm that were folded twice."""
    model = parspike.language(saved(tmp_path, "LlamaForCausalLM", num_hidden_layers=2, tie_word_embeddings=tied,
                                    mlp_bias=True, attention_bias=True)).double()  # fmt: skip
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.3, 2.0) if "norm" in name else nn.init.normal_(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made, x = model.rotated(), model.example(3, 9)
    with torch.no_grad():
        wanted = model(x)
        assert float((made(x) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())  # norms are float32's there
        assert float((made.net.get_input_embeddings()(x) - model.net.get_input_embeddings()(x)).abs().max()) > 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert made.tokenizer is not None
    assert (made.head, made.words, made.context) == (model.head, model.words, model.context)


@pytest.mark.parametrize("size", [1, 8, 24, 576])
def test_an_orthogonal_matrix_of_any_size(size: int) -> None:
    made = orthogonal(size)
    torch.testing.assert_close(made @ made.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(made.abs().max()) <= (2 / size) ** 0.5 + 1e-12 or size == 1


def test_streams_that_cannot_be_rotated_are_refused(folders: Path, llama: Any) -> None:
    with pytest.raises(UnsupportedError, match="only causal networks are rotated"):
        parspike.language(folders / "BertModel").rotated()
    with pytest.raises(UnsupportedError, match="GPT2LMHeadModel: the stream of a network as LLaMA is rotated"):
        parspike.language(folders / "GPT2LMHeadModel").rotated()
    other = copy.deepcopy(llama)
    inner = other.net.model.layers[0].mlp
    inner.register_forward_hook(lambda module, args, out: out / out.abs().amax(-1, keepdim=True))
    with pytest.raises(UnsupportedError, match="its outputs differ by"):
        other.rotated()


def test_padding_changes_no_answer(folders: Path) -> None:
    for kind, head in (("BertModel", "sentence"), ("BertForSequenceClassification", None)):
        model = parspike.language(folders / kind, head=head)  # pyright: ignore[reportArgumentType]
        x = model.example(2, 9)
        filled = torch.cat([x, torch.zeros(2, 5, dtype=torch.long)], 1)
        assert torch.allclose(model(filled), model(x), atol=1e-6), kind
        assert not torch.allclose(model(filled.clamp(min=1)), model(x), atol=1e-3)


def test_a_folder_of_sentence_transformers_gives_its_vectors(folders: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "net", "BertModel")
    parts = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [{"path": at, "type": f"sentence_transformers.models.{kind}"} for at, kind in parts]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}')
    model, plain = parspike.language(folder), parspike.language(folder, head="hidden")
    x = model.example(3, 8)
    mean = plain(x).mean(1)
    assert (model.head, model.context) == ("sentence", 32)
    assert torch.allclose(model(x), mean / mean.norm(dim=1, keepdim=True), atol=1e-6)
    pooling.write_text('{"pooling_mode_mean_tokens": false, "pooling_mode_cls_token": true}')
    first = plain(x)[:, 0]
    assert torch.allclose(parspike.language(folder)(x), first / first.norm(dim=1, keepdim=True), atol=1e-6)
    pooling.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(UnsupportedError, match=r"pools by pooling_mode_max_tokens.*hf:PATH:hidden"):
        parspike.language(folder)


def test_attention_with_grouped_queries_converts_for_any_number_of_tokens(converted: Path, llama: Any) -> None:
    snn = parspike.load(converted)
    assert len(snn.neurons()) == 2
    for tokens in (2, 7, 40):
        x = llama.example(2, tokens)
        near, own = snn(x), llama(x).detach()
        assert near.shape == (2, tokens, llama.words)
        assert 0 < float((near - own).norm() / own.norm()) < 0.2
        # Causal: a later token changes nothing before it.
        other = x.clone()
        other[:, -1] = 5
        assert torch.allclose(snn(other)[:, :-1], near[:, :-1], atol=1e-5)


def test_a_mixture_of_experts_is_read_in_a_form_that_converts(tmp_path: Path) -> None:
    """transformers would loop over the experts, or sort tokens by them, which no graph holds."""
    model = parspike.language(saved(tmp_path / "net", "MixtralForCausalLM"))
    x = model.example(8, 6)
    snn = parspike.convert(model, [x], T=8, code="weighted", recipe="max")
    with torch.no_grad():
        assert (snn(x) - model(x)).norm() < 0.05 * model(x).norm()


@pytest.mark.parametrize("form", ["grouped_mm", pytest.param("eager", marks=pytest.mark.slow)])
def test_a_form_of_experts_that_no_graph_holds_says_which_one_converts(form: str, tmp_path: Path) -> None:
    model = parspike.language(saved(tmp_path / "net", "MixtralForCausalLM"))
    model.net.set_experts_implementation(form)
    with pytest.raises((UnsupportedError, TraceError), match=r"set_experts_implementation\('batched_mm'\)"):
        parspike.convert(model, [model.example(8, 6)], T=8, recipe="max")


def test_what_is_no_network_is_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"there is no .*gone.*downloads nothing"):
        parspike.language(tmp_path / "gone")
    with pytest.raises(FileError, match="there is no network in it"):
        parspike.language(folders / "text")
    with pytest.raises(FileError, match="expected a folder"):
        parspike.language(folders / "text" / "a.txt")
    (tmp_path / "net.gguf").write_bytes(b"GGUX")
    with pytest.raises(FileError, match="no GGUF file"):
        parspike.language(tmp_path / "net.gguf")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileError, match=r"no weights in it.*save_pretrained"):
        parspike.language(tmp_path)
    with pytest.raises(OptionError, match="head must be one of causal"):
        parspike.language(folders / "BertModel", head="mean")  # pyright: ignore[reportArgumentType]


def test_weights_that_are_missing_or_damaged_are_refused(folders: Path, tmp_path: Path) -> None:
    # An embedder has no scores of tokens: transformers would make them up.
    with pytest.raises(FileError, match=r"tensors that BertForSequenceClassification needs are missing.*classifier"):
        parspike.language(folders / "BertModel", head="classes")
    folder = saved(tmp_path / "net", "GPT2LMHeadModel")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(FileError, match="transformers cannot read the network"):
        parspike.language(folder)


def test_networks_that_need_their_own_code_or_two_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}, "architectures": ["Own"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(FileError, match="code of its own"):
        parspike.language(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}')
    with pytest.raises(UnsupportedError, match="an encoder and a decoder"):
        parspike.language(tmp_path)


def test_without_the_extra_the_command_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"parspike\[lm\]"):
        parspike.language(folders / "BertModel")


def test_a_gguf_file_is_the_network_that_it_was_made_from(folders: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    net = transformers.AutoModelForCausalLM.from_pretrained(folders / "LlamaForCausalLM")
    config, tokenizer = net.config, transformers.AutoTokenizer.from_pretrained(folders / "LlamaForCausalLM")
    file = gguf.GGUFWriter(tmp_path / "net.gguf", "llama")
    file.add_block_count(1)
    file.add_context_length(64)
    file.add_embedding_length(24)
    file.add_feed_forward_length(40)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_rope_dimension_count(6)
    file.add_rope_freq_base(10000.0)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = json.loads((folders / "LlamaForCausalLM" / "tokenizer.json").read_text())["model"]["merges"]
    file.add_tokenizer_model("gpt2")
    file.add_token_list(words)
    file.add_token_types([3 if place < 5 else 1 for place in range(len(words))])
    file.add_token_merges([" ".join(pair) for pair in merges])
    file.add_eos_token_id(2)
    file.add_unk_token_id(1)

    def paired(weight: Tensor, heads: int) -> Tensor:
        """Rotary pairs side by side, as GGUF holds them, instead of in two halves."""
        return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, value in net.state_dict().items():
        part = name.removesuffix(".weight").split(".")
        if name.startswith("model.layers"):
            kind = ".".join(part[3:])
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(kind)
            tensor = value if heads is None else paired(value, heads)
            file.add_tensor(f"blk.{part[2]}.{names[kind]}.weight", tensor.numpy())
        elif name != "lm_head.weight":
            called = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}[".".join(part)]
            file.add_tensor(f"{called}.weight", value.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    read = parspike.language(tmp_path / "net.gguf")
    x = read.example(2, 9)
    assert torch.allclose(read(x), net(x).logits, atol=1e-5)
    assert read.tokenizer.encode("The dog finds") == tokenizer("The dog finds")["input_ids"]
    assert torch.equal(parspike.language(tmp_path)(x), read(x))  # the folder's one file


# --------------------------------------------------------------------------------------------------------- text


def test_text_is_cut_file_by_file_from_its_beginning(llama: Any, tmp_path: Path) -> None:
    tokenizer, texts = llama.tokenizer, {"b.txt": TEXT[:300], "sub/a.txt": "﻿The dog finds the boat.", "c.md": TEXT}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    one, other = (tokenizer.hf(text)["input_ids"] for text in (TEXT[:300], "The dog finds the boat."))
    wanted = [ids[k : k + 5] for ids in (one, other) for k in range(0, len(ids) - 4, 5)]
    found = tokenizer.sequences(tmp_path, tokens=5)
    assert found.dtype == torch.int64
    assert found.tolist() == wanted
    assert torch.equal(found, tokenizer.sequences([TEXT[:300], "The dog finds the boat."], tokens=5))
    assert tokenizer.decode(one) == TEXT[:300]


def test_each_sequence_has_the_special_tokens_of_its_tokenizer(folders: Path) -> None:
    tokenizer = parspike.Tokenizer(folders / "BertModel")
    found = tokenizer.sequences([TEXT], tokens=10)
    assert set(found[:, 0].tolist()) == {3}
    assert set(found[:, -1].tolist()) == {4}
    plain = tokenizer.hf(TEXT, add_special_tokens=False)["input_ids"]
    assert found[:, 1:-1].flatten().tolist() == plain[: found[:, 1:-1].numel()]
    with pytest.raises(OptionError, match="at least 3, since the tokenizer adds 2"):
        tokenizer.sequences([TEXT], tokens=2)


def test_text_that_cannot_be_used_is_refused(llama: Any, folders: Path, tmp_path: Path) -> None:
    tokenizer = llama.tokenizer
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match="the text is empty"):
        tokenizer.sequences(tmp_path / "empty.txt")
    (tmp_path / "short.txt").write_text("The dog")
    long = len(tokenizer.encode("The dog"))
    with pytest.raises(InputError, match=rf"longest \(.*short.txt\), has {long} tokens.*256.*--tokens {long}"):
        tokenizer.sequences(tmp_path)
    (tmp_path / "latin.txt").write_bytes("Straße".encode("latin1"))
    with pytest.raises(FileError, match=r"latin.txt: byte 4 is no UTF-8"):
        tokenizer.sequences(tmp_path / "latin.txt")
    with pytest.raises(InputError, match=r"no \.txt files"):
        tokenizer.sequences(folders / "BertModel")
    with pytest.raises(FileError, match=r"no tokenizer in it.*--tokenizer"):
        parspike.Tokenizer(folders / "text")


# --------------------------------------------------------------------------------------------------- perplexity


def test_perplexity_is_that_of_its_definition(llama: Any) -> None:
    x = llama.tokenizer.sequences([TEXT], tokens=9)[:7]

    class Other(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return 0.5 * llama(ids)

    found = parspike.perplexity(Other(), x, against=llama)
    lost, same, own_lost = [], 0, []
    with torch.no_grad():
        for row in x:
            logits = llama(row[None])[0].double()
            for place in range(8):
                lost.append(-float((0.5 * logits[place]).softmax(0)[row[place + 1]].log()))
                own_lost.append(-float(logits[place].softmax(0)[row[place + 1]].log()))
                same += 1
    assert (found.tokens, found.agreement) == (56, same / 56)
    assert found.perplexity == pytest.approx(math.exp(sum(lost) / 56), rel=1e-5)
    assert found.network_perplexity == pytest.approx(math.exp(sum(own_lost) / 56), rel=1e-5)
    assert found.ratio == pytest.approx(found.perplexity / found.network_perplexity, rel=1e-9)
    alone = parspike.perplexity(Other(), x.split(2))
    assert alone.perplexity == pytest.approx(found.perplexity, rel=1e-6)
    assert (alone.ratio, alone.agreement) == (None, None)


def test_who_knows_nothing_has_the_perplexity_of_all_words() -> None:
    class Flat(nn.Module):
        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            return {"states": torch.ones(3), "logits": torch.zeros(*ids.shape, 50)}

    found = parspike.perplexity(Flat(), torch.randint(0, 50, (3, 4)))
    assert found.perplexity == pytest.approx(50)
    half = parspike.Perplexity.merged([found, parspike.perplexity(Flat(), torch.randint(0, 50, (5, 4)))])
    assert (half.tokens, half.perplexity) == (24, pytest.approx(50))
    with pytest.raises(InputError, match="the token 50 but the network knows 50 words"):
        parspike.perplexity(Flat(), torch.full((1, 4), 50))
    with pytest.raises(InputError, match=r"got \(3,\)"):
        parspike.perplexity(Flat(), [torch.zeros(3, dtype=torch.long)])
    with pytest.raises(InputError, match=r"the network returns \(2, 4\): perplexity needs the logits"):
        parspike.perplexity(nn.Flatten(), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(InputError, match="no sequences"):
        parspike.perplexity(Flat(), [])


# ----------------------------------------------------------------------------------------------------- writing


def test_greedy_text_is_that_of_transformers(llama: Any) -> None:
    tokenizer = llama.tokenizer
    start = tokenizer.encode("The dog")
    wanted = llama.net.generate(
        torch.tensor([start]), max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.end, pad_token_id=0
    )
    wanted = wanted[0, len(start) :].tolist()
    wanted = wanted[: wanted.index(tokenizer.end)] if tokenizer.end in wanted else wanted
    assert parspike.generate(llama, tokenizer, "The dog", tokens=12) == tokenizer.decode(wanted)


def test_drawn_text_follows_its_seed_and_ends_where_the_network_says(llama: Any) -> None:
    tokenizer = llama.tokenizer
    how: dict[str, Any] = {"tokens": 8, "temperature": 1.0}
    state = torch.get_rng_state()
    texts = [parspike.generate(llama, tokenizer, "The dog", seed=seed, **how) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(state, torch.get_rng_state())

    class Ends(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            scores = torch.zeros(*ids.shape, llama.words)
            scores[..., tokenizer.encode(" boat")[0]] = 1
            scores[:, 5:, tokenizer.end] = 2
            return scores

    start = tokenizer.encode("The dog")
    assert len(list(pieces(Ends(), tokenizer, start, tokens=20))) == 6 - len(start)
    with pytest.raises(InputError, match="longer than the 10 that"):
        parspike.generate(llama, tokenizer, "The dog", tokens=20, context=10)
    with pytest.raises(InputError, match="the prompt is empty"):
        parspike.generate(llama, tokenizer, "", tokens=2)
    with pytest.raises(InputError, match="takes a causal language model"):
        parspike.generate(nn.Flatten(), tokenizer, "The", tokens=1)


def test_a_network_of_one_length_writes_too(llama: Any) -> None:
    """A text that is shorter is filled up behind its end, where a causal network does not look."""
    plan = parspike.plan(llama, llama.example(2, 24), free_sizes=False)
    snn = parspike.convert(plan, llama.tokenizer.sequences([TEXT], 24)[:8], T=16, recipe="max")
    assert snn.graph.inputs[0].shape[1] == 24
    text = parspike.generate(snn, llama.tokenizer, "The dog", tokens=6)
    with torch.no_grad():
        known = llama.tokenizer.encode("The dog")
        given = torch.tensor([[*known, *[7] * (24 - len(known))]])
        first = int(snn(given)[0, len(known) - 1].argmax())
    assert text.startswith(llama.tokenizer.decode([first]))
    with pytest.raises(InputError, match="longer than the 24"):
        parspike.generate(snn, llama.tokenizer, "The dog", tokens=24)


# ------------------------------------------------------------------------------------------------- command line


def test_the_command_line_knows_the_heads_of_the_library() -> None:
    assert spec.HEADS == HEADS


def test_eval_gives_the_perplexity_of_a_converted_language_model(
    converted: Path, folders: Path, llama: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    against = f"hf:{folders / 'LlamaForCausalLM'}"
    file = tmp_path / "short.txt"
    file.write_text(TEXT[:300])
    data = ("--data", file)
    code, out, _ = cli(capsys, "eval", converted, *data, "--against", against, "--json")
    said = json.loads(out)
    x = llama.tokenizer.sequences([TEXT[:300]], tokens=12)
    wanted = parspike.perplexity(parspike.load(converted), x, against=llama)
    assert code == 0
    assert said["tokens"] == 11 * len(x) > 50
    for name, value in wanted.to_json().items():
        assert said[name] == pytest.approx(value, rel=1e-6), name
    code, out, _ = cli(capsys, "eval", converted, *data)
    assert code == 0
    assert "perplexity" in out
    assert "sequences of 12 tokens" in out


def test_generate_writes_with_the_tokenizer_that_the_file_names(
    converted: Path, llama: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = parspike.generate(parspike.load(converted), llama.tokenizer, "The dog", tokens=5)
    own = parspike.generate(llama, llama.tokenizer, "The dog", tokens=5)
    asked = ("generate", converted, "--prompt", "The dog", "--tokens", 5, "--beside", "--json")
    code, out, _ = cli(capsys, *asked)
    said = json.loads(out)
    assert (code, said["text"], said["network_text"], said["same"]) == (0, wanted, own, wanted == own)
    code, out, _ = cli(capsys, *asked[:-1])
    assert code == 0
    assert out.startswith("── net.parspike, T = 8\nThe dog")
    drawn = ("--temperature", 0.7, "--seed", 3, "--no-cache")
    code, out, _ = cli(capsys, "generate", converted, "--prompt", "The dog", "--tokens", 5, "--json", *drawn)
    wanted = parspike.generate(
        parspike.load(converted), llama.tokenizer, "The dog", tokens=5, temperature=0.7, seed=3, cache=False
    )
    assert (code, json.loads(out)["text"]) == (0, wanted)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("eval", "{net}", "--data", "{text}", "--tokens", 65), "--tokens 65: the network takes at most 64 tokens"),
        (("eval", "{net}", "--data", "{text}", "--tokenizer", "gone"), "--tokenizer gone: there is no such folder"),
        (("eval", "{net}", "--data", "{text}", "--tokenizer", "{other}"), "has other words than the one"),
        (("eval", "{net}", "--data", "{text}", "--split", "test"), "not divided into splits"),
        (("eval", "{net}", "--data", "{images}", "--measure", "perplexity"), "is of text, and {images} holds none"),
        (("generate", "{net}", "--prompt", " "), "--prompt is empty"),
        (("generate", "{net}", "--prompt", "The", "--tokens", 100), "longer than the 64 that the network takes"),
        (("generate", "{net}", "--prompt", "The", "--chat"), "no chat template"),
        (("generate", "hf:{bert}", "--prompt", "The"), "no scores of the next token"),
        (("generate", "hf:gone", "--prompt", "The"), "there is no folder or file gone; parspike downloads nothing"),
        (("plan", "hf:{bert}", "--shape", "100"), "--shape 100: hf:{bert} takes a number of tokens, 64 at most"),
        (("plan", "hf:{bert}", "--weights", "{net}"), "has its own weights"),
        (("plan", "hf:{text}"), "there is no network in it"),
    ],
)
def test_wrong_use_gets_one_clear_line(
    arguments: tuple[Any, ...], said: str, converted: Path, folders: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = tmp_path / "other"
    if "{other}" in arguments:
        other.mkdir()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "LlamaForCausalLM")
        tokenizer.add_tokens(["zebra"])
        tokenizer.save_pretrained(other)
    images = tmp_path / "images.npz"
    np.savez(images, images=np.zeros((2, 4, 4), np.uint8))
    names = {
        "images": images,
        "net": converted,
        "text": folders / "text",
        "bert": folders / "BertModel",
        "other": other,
    }
    code, out, err = cli(capsys, *(str(a).format(**names) for a in arguments))
    assert (code, out) == (1, "")
    assert said.format(**names) in err
    assert err.count("error:") == 1


def test_text_needs_a_tokenizer_and_finds_it_where_it_went(
    converted: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snn = parspike.load(converted)
    noted = snn.provenance["command_line"]
    moved = tmp_path / "moved.parspike"
    noted["preprocessing"]["text"]["tokenizer"] = str(tmp_path / "gone")
    snn.save(moved)
    asked = ("eval", moved, "--data", folders / "text" / "a.txt", "--limit", 2, "--json")
    code, out, _ = cli(capsys, *asked)
    assert code == 1
    assert "no longer at" in json.loads(out)["error"]["message"]
    code, out, _ = cli(capsys, *asked, "--tokenizer", folders / "GPT2LMHeadModel")  # the same words
    assert (code, json.loads(out)["tokens"]) == (0, 22)
    del snn.provenance["command_line"]
    snn.save(moved, force=True)
    code, out, _ = cli(capsys, *asked)
    assert code == 1
    assert "--tokenizer FOLDER" in json.loads(out)["error"]["message"]


def test_eval_of_an_embedder_gives_the_cosine_with_its_vectors(
    folders: Path, llama: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of few parts beside the embedder, as a converted one would stand: one vector a text."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.hidden, self.out = nn.Embedding(llama.words, 8), nn.Linear(8, 16), nn.Linear(16, 24)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.out(self.hidden(self.words(input_ids).mean(1)).relu())

    x = parspike.Tokenizer(folders / "BertModel").sequences([TEXT[:300]], tokens=10)
    snn = parspike.convert(Bag().eval(), x, T=4, recipe="max")
    file, text = tmp_path / "bag.parspike", tmp_path / "a.txt"
    text.write_text(TEXT[:300])
    snn.save(file)
    spec = f"hf:{folders / 'BertModel'}:sentence"
    asked = ("eval", file, "--data", text, "--tokens", 10, "--json")
    code, out, _ = cli(capsys, *asked, "--against", spec)
    with torch.no_grad():
        one, other = snn(x), parspike.language(folders / "BertModel", head="sentence")(x)
    wanted = float(torch.nn.functional.cosine_similarity(one, other).mean())
    assert code == 0
    assert json.loads(out)["cosine"] == pytest.approx(wanted, rel=1e-4)
    code, out, _ = cli(capsys, *asked, "--measure", "cosine")
    assert "give it with --against SPEC" in json.loads(out)["error"]["message"]
