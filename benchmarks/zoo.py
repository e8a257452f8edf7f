"""The networks of docs/zoo.md: each is planned, converted and compared with itself, in a process of its own.

    python benchmarks/zoo.py                    run what has no result yet, write docs/zoo.md
    python benchmarks/zoo.py --jobs 2 --memory 11    two at a time, each in at most 11 GiB
    python benchmarks/zoo.py --one NAME         one network, its result printed as JSON
    python benchmarks/zoo.py --only swin,gpt2   those whose name holds one of the words, anew
    python benchmarks/zoo.py --page             write docs/zoo.md from the results that are there
    python benchmarks/zoo.py --plans            plan every network anew, convert none, and say which plans changed

Weights are random (nothing is downloaded), the input is noise, arithmetic is float64. The error is that of the
output at T = 1024 with thresholds from the test input itself, ‖snn(x) − net(x)‖ / ‖net(x)‖, and where that is above
1 %, also at T = 16384. "gain" is what the network itself makes of a small relative change of its input: a network of
random weights may be chaotic (50), and then every error of the first layers is seen 50 times at the output.
"engines" is the largest relative difference of `parallel` and `serial` from `count` at T = 3.
Results stand in benchmarks/zoo.jsonl, one line a network, kept with the code so that another machine goes on with them;
those of --plans stand in benchmarks/zoo-plans.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import torchvision_operators
from torch import Tensor, nn

torchvision_operators.declare()

RESULTS = Path("benchmarks/zoo.jsonl")
PLANS = Path("benchmarks/zoo-plans.jsonl")
PAGE = Path("docs/zoo.md")
FINE, FINEST, COARSE = 1024, 16384, 3
IN_FLOAT32 = {"transformers/llama"}
"""Networks with a cast to float32 in their code."""
GOOD, ASLEEP, FAINT = 0.01, 0.02, 1e-10
SECONDS = 1500

Made = tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]
ZOO: dict[str, Callable[[], Made]] = {}


def _image(size: int = 64, *, batch: int = 2, frames: int = 0) -> Tensor:
    return torch.randn(batch, 3, *([frames] if frames else []), size, size)


def _torchvision(name: str, size: int = 64, *, frames: int = 0, **options: Any) -> None:
    def make() -> Made:
        import torchvision

        module = torchvision.models
        for family in ("segmentation", "video", "detection", "optical_flow", "quantization"):
            if name in torchvision.models.list_models(module=getattr(torchvision.models, family)):
                module = getattr(torchvision.models, family)
        given = dict(options)
        if name in ("googlenet", "inception_v3"):
            given |= {"init_weights": True, "aux_logits": False}
        if module is torchvision.models.segmentation:
            given |= {"weights_backbone": None}
        return module.__dict__[name](weights=None, **given), (_image(size, frames=frames),), {}

    ZOO[f"torchvision/{name}"] = make


# Every classification network of torchvision 0.28, the ones above 300 million parameters last of all.
IMAGES = """
alexnet resnet18 vgg11 vgg11_bn resnet50 resnext50_32x4d wide_resnet50_2 densenet121 googlenet squeezenet1_0
squeezenet1_1 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large shufflenet_v2_x0_5 shufflenet_v2_x1_0 mnasnet0_5
mnasnet1_0 efficientnet_b0 efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny swin_t swin_v2_t
"""
LARGER = """
resnet34 resnet101 resnet152 resnext101_32x8d resnext101_64x4d wide_resnet101_2 vgg13 vgg13_bn vgg16 vgg16_bn vgg19
vgg19_bn densenet161 densenet169 densenet201 shufflenet_v2_x1_5 shufflenet_v2_x2_0 mnasnet0_75 mnasnet1_3
efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7
efficientnet_v2_m efficientnet_v2_l regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf
regnet_x_32gf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf convnext_small
convnext_base convnext_large swin_s swin_b swin_v2_s swin_v2_b
"""
for _each in IMAGES.split():
    _torchvision(_each)
_torchvision("inception_v3", 96)
_torchvision("vit_b_16", 64, image_size=64)
_torchvision("maxvit_t", 224, input_size=(224, 224))
_torchvision("fcn_resnet50")
_torchvision("deeplabv3_mobilenet_v3_large")
_torchvision("deeplabv3_resnet50")
_torchvision("lraspp_mobilenet_v3_large")
_torchvision("r2plus1d_18", 32, frames=8)
_torchvision("r3d_18", 32, frames=8)
_torchvision("mc3_18", 32, frames=8)
_torchvision("s3d", 224, frames=16)
_torchvision("swin3d_t", 64, frames=8)


class UNet(nn.Module):
    """Two levels, transposed and bilinear upsampling, skips by concatenation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = self._pair(3, width), self._pair(width, 2 * width)
        self.middle = self._pair(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = self._pair(4 * width, 2 * width)
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2 * width, width, 1))
        self.join1 = self._pair(2 * width, width)
        self.head = nn.Conv2d(width, 4, 1)

    @staticmethod
    def _pair(into: int, out: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels in (into, out):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        three = self.middle(nn.functional.max_pool2d(two, 2))
        two = self.join2(torch.cat([self.up2(three), two], 1))
        return self.head(self.join1(torch.cat([self.up1(two), one], 1)))


class PointNet(nn.Module):
    """Points (B, 3, N) → classes: shared perceptron, maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 64, 64, 128, 256]
        self.local = nn.Sequential(*[
            layer for a, b in itertools.pairwise(widths)
            for layer in (nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU())
        ])  # fmt: skip
        self.head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))

    def forward(self, points: Tensor) -> Tensor:
        return nn.functional.log_softmax(self.head(torch.max(self.local(points), 2)[0]), -1)


class Audio(nn.Module):
    """Waveform (B, 1, samples) → classes, in the manner of M5."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, width, 80, stride=16), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(4),
            nn.Conv1d(width, width, 3), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(4),
            nn.Conv1d(width, 2 * width, 3), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.MaxPool1d(4),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, 35)

    def forward(self, waveform: Tensor) -> Tensor:
        return self.head(self.layers(waveform).mean(-1)).log_softmax(-1)


class Mixer(nn.Module):
    """MLP-Mixer: LayerNorm, token mixing, channel mixing."""

    class Block(nn.Module):
        def __init__(self, tokens: int, width: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
            self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        self.blocks = nn.Sequential(*[self.Block(16, width) for _ in range(4)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


ZOO["own/unet"] = lambda: (UNet(), (_image(32),), {})
ZOO["own/pointnet"] = lambda: (PointNet(), (torch.randn(2, 3, 256),), {})
ZOO["own/audio_cnn"] = lambda: (Audio(), (torch.randn(2, 1, 8000),), {})
ZOO["own/mlp_mixer"] = lambda: (Mixer(), (_image(32),), {})


def _transformers(name: str, kind: str, **options: Any) -> None:
    def make() -> Made:
        import transformers

        config = getattr(
            transformers, f"{kind.partition('For')[0].removesuffix('LMHeadModel').removesuffix('Model')}Config"
        )
        model = getattr(transformers, kind)(config(**options))
        return model, (), {"input_ids": torch.randint(0, 500, (2, 16)), "attention_mask": torch.ones(2, 16).long()}

    ZOO[f"transformers/{name}"] = make


_transformers(
    "gpt2", "GPT2LMHeadModel", vocab_size=500, n_positions=64, n_embd=64, n_layer=3, n_head=4, use_cache=False
)
_transformers("bert", "BertForSequenceClassification", vocab_size=500, hidden_size=64, num_hidden_layers=3,
              num_attention_heads=4, intermediate_size=128)  # fmt: skip
_transformers("distilbert", "DistilBertForSequenceClassification", vocab_size=500, dim=64, n_layers=3, n_heads=4,
              hidden_dim=128)  # fmt: skip
_transformers("llama", "LlamaForCausalLM", vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
              num_attention_heads=4, num_key_value_heads=2, use_cache=False)  # fmt: skip


# The smallest of each family of timm 1.0 (by parameters, of its first names), and an input that it takes.
TIMM = """
beit:beit_base_patch16_224 byoanet:halonet_h1:256 byobnet:test_byobnet:96 cait:cait_xxs24_224 coat:coat_tiny
convit:convit_tiny convmixer:convmixer_768_32:64 convnext:test_convnext:96 cpubone:cpubone_nano:96
crossvit:crossvit_tiny_240:240 csatv2:csatv2:512 cspnet:cs3darknet_focus_s:64 cspnext:cspnext_tiny:64
davit:davit_tiny:224 deepseek_vit:deepseek_vit_412m
deit:deit_tiny_patch16_224 densenet:densenet121:64 dla:dla46x_c:64 dpn:dpn48b:64
edgenext:edgenext_xx_small:64 efficientformer:efficientformer_l1 efficientformer_v2:efficientformerv2_s0
efficientnet:mobilenetv2_035:64 efficientvim:efficientvim_m1 efficientvit_mit:efficientvit_b0:64
efficientvit_msra:efficientvit_m0 eva:vit_tiny_patch16_dinov3_qkvb fasternet:fasternet_t0:64 fastvit:fastvit_t8:64
focalnet:focalnet_tiny_srf:64 gcvit:gcvit_xxtiny gemma4_vit:gemma4_vit_167m ghostnet:ghostnet_050:64
hardcorenas:hardcorenas_b:64 hgnet:hgnetv2_b0:64 hiera:hiera_tiny_224 hieradet_sam2:sam2_hiera_tiny:224
hrnet:hrnet_w18_small:64 iformer:iformer_t inception_next:inception_next_atto:64
inception_resnet_v2:inception_resnet_v2:96 inception_v3:inception_v3:96 inception_v4:inception_v4:96
lcnetv2:lcnetv2_small:64 levit:levit_128s lowformer:lowformer_b0 mambaout:test_mambaout:96 maxxvit:test_coatnet
metaformer:poolformerv2_s12:64 mlp_mixer:gmlp_ti16_224 mobilenetv3:mobilenetv3_small_050:64
mobilenetv5:mobilenetv5_base:64 mobilevit:mobilevit_xxs:64 mvitv2:mvitv2_tiny
naflexvit:naflexvit_base_patch16_parfac_gap
nasnet:nasnetalarge:96 nest:nest_tiny nextvit:nextvit_small:64 nfnet:test_nfnet:96 pit:pit_ti_224
pnasnet:pnasnet5large:96 pvt_v2:pvt_v2_b0:64 qwen3_vit:qwen3_vit_88m rdnet:rdnet_tiny:64 regnet:regnetx_002:64
repghost:repghostnet_050:64 repvit:repvit_m1:64 res2net:res2next50:64 resnest:resnest14d:64 resnet:test_resnet:96
resnetv2:resnetv2_18:64 rexnet:rexnet_100:64 selecsls:selecsls42:64 senet:legacy_seresnet18:64 sequencer:sequencer2d_s
shvit:shvit_s1 sknet:skresnet18:64 starnet:starnet_s050:64 swiftformer:swiftformer_xs
swin_transformer:swin_tiny_patch4_window7_224 swin_transformer_v2:swinv2_tiny_window8_256
swin_transformer_v2_cr:swinv2_cr_tiny_224 tiny_vit:tiny_vit_5m_224 tnt:tnt_s_legacy_patch16_224 tresnet:tresnet_m:64
twins:twins_svt_small vgg:vgg11:64 visformer:visformer_tiny vision_transformer:test_vit
vision_transformer_hybrid:vit_tiny_r_s16_p8_224 vision_transformer_relpos:test_vit_relpos
vision_transformer_sam:samvit_base_patch16_224 vitamin:vitamin_small_224 volo:volo_d1_224
vovnet:ese_vovnet19b_slim_dw:64 xception:legacy_xception:96 xception_aligned:xception41p:96 xcit:xcit_nano_12_p8_224
"""


def _timm(family: str, name: str, size: int | None) -> None:
    def make() -> Made:
        import timm

        model = timm.create_model(name, pretrained=False)
        return model, (_image(size or model.default_cfg["input_size"][-1]),), {}

    ZOO[f"timm/{family}"] = make


for _row in TIMM.split():
    _parts = _row.split(":")
    _timm(_parts[0], _parts[1], int(_parts[2]) if len(_parts) > 2 else None)


for _each in LARGER.split():
    _torchvision(_each)
_torchvision("vit_b_32", 64, image_size=64)
_torchvision("vit_l_16", 64, image_size=64)
_torchvision("vit_l_32", 64, image_size=64)
_torchvision("vit_h_14", 56, image_size=56)
_torchvision("regnet_y_128gf")


def run(name: str, *, planned: bool = False) -> dict[str, Any]:
    """Plan, convert, compare one network; or only plan it."""
    import parspike

    torch.manual_seed(0)
    model, args, kwargs = ZOO[name]()
    args = tuple(arg.double() for arg in args)
    model = model.eval().double()
    example: Any = kwargs or args
    result: dict[str, Any] = {
        "name": name, "class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters()),
        "input": [list(t.shape) for t in (*args, *kwargs.values())],
    }  # fmt: skip
    result["gain"] = round(_awake(model, args, kwargs), 3)
    start = time.perf_counter()
    try:
        plan = parspike.plan(model, example)
        result["plan_seconds"] = round(time.perf_counter() - start, 1)
        rows = plan.to_dict()["rows"]
        result["neurons"] = len(plan.spiking)
        result["analog"] = dict(Counter(row["operator"] for row in rows if row["role"] == "analog"))
        result["readout"] = dict(Counter(row["operator"] for row in rows if row["role"] == "readout"))
        plan.check()
    except parspike.ParspikeError as error:
        return result | {"refused": f"{type(error).__name__}: {error}"[:2000]}
    if planned:
        return result
    with torch.no_grad():
        wanted = _tensors(model(*args, **kwargs))

        def outputs(snn: Any, engine: str = "count") -> list[Tensor]:
            return _tensors(snn.run(*args, engine=engine, **kwargs).logits)

        result["error"] = _distance(outputs(parspike.convert(plan, [example], T=FINE, recipe="max")), wanted)
        if result["error"] > GOOD:
            result["finer"] = _distance(outputs(parspike.convert(plan, [example], T=FINEST, recipe="max")), wanted)
        snn = parspike.convert(plan, [example], T=COARSE, recipe="max")
        count = outputs(snn)
        result["engines"] = max(_distance(outputs(snn, engine), count) for engine in ("parallel", "serial"))
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result


def _awake(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> float:
    """See that every part counts, as in a trained network; return the gain.

    Weights that start as nothing (layer scale, the last norm of a block) are drawn anew. Where the output hardly
    depends on the input all the same, or the signal fades to what float64 rounds away beside a constant, batch norms
    take the statistics of noise, which brings it through.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bias" not in name and weight.dim() and float(weight.abs().max()) < 2e-3:
                _ = weight.uniform_(0.5, 1) if weight.dim() == 1 else weight.normal_(std=weight[0].numel() ** -0.5)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        faintest = [math.inf]
        hooks = [
            norm.register_forward_pre_hook(lambda _, args: faintest.append(float(args[0].std()))) for norm in norms
        ]
        gain = math.nan if kwargs else _gain(model, args)
        for hook in hooks:
            hook.remove()
        if kwargs or not norms or (gain > ASLEEP and min(faintest) > FAINT):
            return gain
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        model(*[torch.cat([arg, *torch.randn(6, *arg.shape[1:]).to(arg).split(2)]) for arg in args])
        model.eval()
        return _gain(model, args)


def _gain(model: nn.Module, args: tuple[Tensor, ...]) -> float:
    """Relative change of the output by a relative change of the input by 1e-3, over the latter."""
    noisy = [arg * (1 + 1e-3 * torch.randn(arg.shape).to(arg)) for arg in args]
    return _distance(_tensors(model(*noisy)), _tensors(model(*args))) / 1e-3


def _tensors(output: Any) -> list[Tensor]:
    from parspike.graph import leaves

    return [t for t in leaves(_plain(output)) if isinstance(t, Tensor)]


def _plain(output: Any) -> Any:
    if isinstance(output, dict):
        return {key: _plain(value) for key, value in output.items()}
    return [_plain(item) for item in output] if isinstance(output, (tuple, list)) else output


def _distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((f - w).norm() / w.norm().clamp(min=1e-30)) for f, w in zip(found, wanted, strict=True))


def _result(name: str, memory: int, *more: str) -> dict[str, Any]:
    """The network's result, from a process of its own that may take `memory` bytes."""
    command = [sys.executable, __file__, "--one", name, *more]
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory)),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"name": name, "failed": f"took more than {SECONDS} s"}
    line = done.stdout.strip().splitlines()[-1:] or [""]
    try:
        return json.loads(line[0])
    except json.JSONDecodeError:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"name": name, "failed": said[0][:500], "seconds": round(time.perf_counter() - begin, 1)}


def page(results: list[dict[str, Any]]) -> str:
    """docs/zoo.md."""
    import timm
    import torchvision

    converted = [r for r in results if "error" in r]
    good = [r for r in converted if r["error"] < GOOD]
    waiting = sorted(set(ZOO) - {r["name"] for r in results})
    fine = [r for r in converted if r.get("finer", r["error"]) < GOOD]
    agree, single = (
        max((r["engines"] for r in converted if (r["name"] in IN_FLOAT32) == inside), default=0.0)
        for inside in (False, True)
    )
    beside = f"; to {single:.0e} where norms compute in float32 all the same ({', '.join(sorted(IN_FLOAT32))})"
    lines = [
        "# The zoo: which networks convert",
        "",
        "Networks of torchvision, timm, Hugging Face's transformers and others, each planned, converted and compared "
        "with itself. Weights are random, so the figures say whether a network converts rightly, not how accurate it "
        "is; trained weights: [results.md](results.md) and [the networks of ONNX files](#networks-of-onnx-files).",
        "",
        f"- **{len(converted)} of {len(results)} networks convert**; what was said of the others stands in "
        "[the table](#the-table).",
        f"- **{len(good)} have an error below 1 % at T = {FINE}, {len(fine)} at T = {FINEST}.**",
        f"- **The three engines agree to {agree:.0e}** of the outputs, in float64{beside * (single > agree)}.",
        "",
        "## The table",
        "",
        "Made by `make zoo` (`benchmarks/zoo.py`). Inputs are noise, arithmetic is float64, thresholds come from the "
        f"test input itself. torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, timm {timm.__version__}.",
        "",
        "- *neuron layers*: activations that spike. *analog operators* are computed on the means over time; *read-out* "
        "stands behind the last neuron.",
        "- *gain*: what the network itself makes of a small relative change of its input. Random weights may be "
        "chaotic; then no error of the first layers is small at the output.",
        f"- *error*: ‖snn(x) − net(x)‖ / ‖net(x)‖ at T = {FINE}, in brackets at T = {FINEST} where it is above 1 %.",
        f"- *engines*: the largest relative difference of `parallel` and `serial` from `count` at T = {COARSE}.",
        *([f"\nNo result yet, `make zoo` goes on with them: {', '.join(waiting)}."] if waiting else []),
        "",
        "| network | parameters | neuron layers | analog operators | read-out | gain | error | engines |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: r["name"]):
        millions = f"{r['parameters'] / 1e6:.1f} M" if "parameters" in r else ""
        if "error" in r:
            error = f"{100 * r['error']:.2g} %" + (f" ({100 * r['finer']:.2g} %)" if "finer" in r else "")
            gain = "" if math.isnan(r["gain"]) else f"{r['gain']:.2g}"
            cells = [str(r["neurons"]), _counted(r["analog"]), _counted(r.get("readout", {})), gain, error,
                     f"{r['engines']:.0e}"]  # fmt: skip
        else:
            why = r.get("refused") or r.get("failed") or ""
            why = " ".join(line.strip() for line in why.splitlines()).replace("|", "/")
            cells = ["–", f"{'refused' if 'refused' in r else 'failed'}: {why[:240]}", "", "", "–", "–"]
        lines.append("| " + " | ".join([f"{r['name']} ({r.get('class', '?')})", millions, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _planned_anew(results: list[dict[str, Any]]) -> list[str]:
    """What --plans found, beside the results that the table holds."""
    found, known = _read(PLANS), {r["name"]: r for r in results}
    changed = {name: _changes(known.get(name, {}), now) for name, now in sorted(found.items())}
    same = sum(not said for said in changed.values())
    return (
        [
            "",
            "## Notes: plans that changed since",
            f"Conversions are of the version that measured them. {len(found)} networks were planned anew since "
            f"(`benchmarks/zoo.py --plans`), {same} of them as the table says; otherwise:",
            "",
            *(f"- {name}: {said}" for name, said in changed.items() if said),
        ]
        if found
        else []
    )


def _counted(table: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(table.items(), key=lambda item: -item[1])) or "none"


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What a new plan of a network says that the one of its last result did not."""
    if "failed" in now or "refused" in now:
        same = all((how in now) == (how in before) for how in ("refused", "failed"))
        return "" if same else f"LOST: {now.get('refused') or now.get('failed')}"[:300]
    if "refused" in before or not before:
        return "is planned now"
    said = [f"neurons {before['neurons']} → {now['neurons']}"] if before["neurons"] != now["neurons"] else []
    for kind in ("analog", "readout"):
        old, new = Counter(before.get(kind, {})), Counter(now[kind])
        said += [f"{kind} +{number} {name}" for name, number in (new - old).items()]
        said += [f"{kind} −{number} {name}" for name, number in (old - new).items()]
    return ", ".join(said)


def _plan_all(names: list[str], jobs: int, memory: int) -> None:
    results, found = _read(), _read(PLANS)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_result, name, memory, "--plans") for name in names if name not in found]
        for future in as_completed(futures):
            now = future.result()
            _keep(found := found | {now["name"]: now}, PLANS)
            print(now["name"], now.get("plan_seconds"), _changes(results.get(now["name"], {}), now), flush=True)
    changed = {name: _changes(results.get(name, {}), found[name]) for name in names if name in found}
    lost = [name for name, said in changed.items() if said.startswith("LOST")]
    print(f"{len(changed)} planned, {sum(map(bool, changed.values()))} otherwise than before, {len(lost)} lost: {lost}")


def _read(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}


def _keep(results: dict[str, dict[str, Any]], path: Path = RESULTS) -> None:
    """All results, sorted by name; the file is never half written."""
    draft = path.with_suffix(".part")
    draft.write_text("".join(json.dumps(results[name]) + "\n" for name in sorted(results)))
    draft.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one")
    parser.add_argument("--only", default="")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--memory", type=float, default=14, help="GiB that one of them may take")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.one, planned=options.plans)))
        return
    words = [word for word in options.only.split(",") if word]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.plans:
        names = [name for name in ZOO if not words or any(word in name for word in words)]
        _plan_all(names, options.jobs, int(options.memory * 2**30))
        return
    results = _read()
    names = [name for name in ZOO if (any(word in name for word in words) if words else name not in results)]
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(_result, name, int(options.memory * 2**30)) for name in names if not options.page]
        for future in as_completed(futures):
            result = future.result()
            _keep(results := _read() | {result["name"]: result})
            print(result["name"], {k: v for k, v in result.items() if k in ("error", "engines", "seconds")},
                  (result.get("refused") or result.get("failed") or "")[:300], flush=True)  # fmt: skip
    # What stands between the table and the notes is of benchmarks/onnx_networks.py.
    _, mark, rest = (PAGE.read_text() if PAGE.is_file() else "").partition("\n## Networks of ONNX files\n")
    known = [result for name, result in results.items() if name in ZOO]
    kept, notes = rest.partition("\n## Notes")[0].rstrip("\n"), "\n".join(_planned_anew(known))
    PAGE.write_text(f"{page(known)}{mark}{kept}\n{notes}".rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
