"""Networks of ONNX files from wheels of PyPI, converted with the default recipe, by each one's own measure.

    pip download --no-deps -d ../ext/wheels speechmos==0.0.1.1 basic-pitch==0.4.0 rapidocr-onnxruntime==1.4.4 \\
        magika==1.0.3 swift-f0==0.3.0
    python benchmarks/onnx_networks.py recogniser detector direction pitch notes files speech
    python benchmarks/onnx_networks.py recogniser files --codes "weighted, 4" "weighted, 6" --encode
    python benchmarks/onnx_networks.py --render docs/zoo.md

The wheels are unpacked, never installed. Inputs are made here: lines and pages of text drawn with matplotlib's fonts,
tones, notes and voices that are synthesised, and the files of this machine's Python. What a conversion is fitted on is
never what it is measured on. One JSON line a figure goes to benchmarks/onnx_networks.jsonl, kept with the code; what
stands there already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_steps import put
from torch import Tensor, nn

import parspike

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "benchmarks" / "onnx_networks.jsonl"
CODES: dict[str, tuple[int, Any]] = {
    "T = 8": (8, "sorted"),
    "weighted, 4": (4, "weighted"),
    "weighted, 6": (6, "weighted"),
}
Answer = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Task:
    """A network, what it is fitted on, and its measure: from a function that runs it, figures by name."""

    network: nn.Module
    calibration: Sequence[Tensor]
    measure: Callable[[Answer], dict[str, float]]


def unpacked(wheels: Path, package: str, member: str) -> Path:
    """A file of a wheel, written beside the wheels; alone in its folder."""
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if not found:
        raise SystemExit(f"{wheels} has no wheel of {package}: the first lines of {__file__} say how to get it")
    with zipfile.ZipFile(found[-1]) as wheel:
        return Path(wheel.extract(member, wheels / "unpacked"))


def answers(run: Answer, x: Tensor, batch: int) -> list[Any]:
    """What a network returns for a few samples at a time."""
    with torch.no_grad():
        return [run(part) for part in x.split(batch)]


# ---------------------------------------------------------------------------------------------------------- text


def fonts() -> list[Path]:
    """The text fonts that come with matplotlib."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [folder / f"{name}.ttf" for name in ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold",
            "DejaVuSerif-Italic", "STIXGeneral")]  # fmt: skip


def words(split: int) -> list[str]:
    """Words of Python's own help texts; those of an even or an odd topic."""
    from pydoc_data.topics import topics

    texts = [text for place, (_, text) in enumerate(sorted(topics.items())) if place % 2 == split]
    return [word for text in texts for word in text.split() if word.isascii() and 2 < len(word) < 13]


def line(rng: np.random.Generator, known: Sequence[str], most: int) -> str:
    """Some words in a row, up to `most` characters."""
    start, text = int(rng.integers(len(known) - 20)), ""
    for word in known[start : start + 20]:
        if len(text) + len(word) + 1 > most:
            break
        text = f"{text} {word}".strip()
    return text or "text"


def drawn(text: str, font: Path, size: int, ink: int, paper: int) -> np.ndarray:
    """A line of text, (height, width) of grey values, with a margin."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), size)
    left, top, right, bottom = face.getbbox(text)
    margin = size // 5
    image = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=face, fill=ink)
    return np.asarray(image)


def lines(number: int, split: int, height: int, width: int, most: int) -> tuple[Tensor, list[str]]:
    """Images (N, 3, height, width) in −1 … 1, filled with 0 at the right, and their texts."""
    from PIL import Image

    rng, known, found = np.random.default_rng(split), words(split), []
    texts = []
    for place in range(number):
        text = line(rng, known, most)
        ink, paper = int(rng.integers(0, 90)), int(rng.integers(170, 256))
        ink, paper = (paper, ink) if rng.random() < 0.2 else (ink, paper)
        grey = drawn(text, fonts()[place % 6], int(rng.integers(24, 48)), ink, paper)
        grey = np.clip(grey + rng.normal(0, rng.uniform(0, 12), grey.shape), 0, 255).astype(np.uint8)
        wide = min(width, math.ceil(grey.shape[1] * height / grey.shape[0]))
        scaled = np.asarray(Image.fromarray(grey).resize((wide, height), Image.Resampling.BILINEAR), np.float32)
        canvas = np.zeros((height, width), np.float32)
        canvas[:, :wide] = scaled / 127.5 - 1
        found.append(canvas)
        texts.append(text)
    return torch.from_numpy(np.stack(found)).unsqueeze(1).repeat(1, 3, 1, 1), texts


def edits(one: str, other: str) -> int:
    """The edit distance (Levenshtein) of two texts."""
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
        before = row
    return before[-1]


def recogniser(wheels: Path) -> Task:
    """PP-OCRv4's recogniser: characters wrong, of lines of text."""
    import onnx

    path = unpacked(wheels, "rapidocr_onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")
    said = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    alphabet = ["", *said["character"].splitlines(), " "]
    x, texts = lines(64, 1, 48, 320, 22)

    def read(scores: Tensor) -> list[str]:
        best = scores.argmax(-1).tolist()
        return ["".join(alphabet[k] for k, _ in itertools.groupby(row)) for row in best]

    def measure(run: Answer) -> dict[str, float]:
        got = [text for scores in answers(run, x, 16) for text in read(scores)]
        wrong = sum(edits(a.replace(" ", ""), b.replace(" ", "")) for a, b in zip(got, texts, strict=True))
        return {"characters wrong": 100 * wrong / sum(len(text.replace(" ", "")) for text in texts)}

    return Task(parspike.from_onnx(path), lines(64, 0, 48, 320, 22)[0].split(16), measure)


def direction(wheels: Path) -> Task:
    """PP-OCR's direction classifier: lines upright or turned by 180°, right, of lines of text."""
    member = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    network = parspike.from_onnx(unpacked(wheels, "rapidocr_onnxruntime", member))

    def turned(number: int, split: int) -> tuple[Tensor, Tensor]:
        # Turned as they are cut out, before the right is filled up: the filled part stays at the right.
        from PIL import Image

        upright, _ = lines(number, split, 48, 192, 12)
        y = torch.arange(number) % 2
        for place in range(1, number, 2):
            image = upright[place, 0].numpy()
            wide = int(np.flatnonzero(np.abs(image).max(0) > 0).max()) + 1
            part = np.asarray(Image.fromarray(image[:, :wide]).rotate(180))
            upright[place, :, :, :wide] = torch.from_numpy(part.copy())
        return upright, y

    x, y = turned(256, 1)
    own = torch.cat(answers(network, x, 32)).argmax(1)

    def measure(run: Answer) -> dict[str, float]:
        got = torch.cat(answers(run, x, 32)).argmax(1)
        return {"right": 100 * float((got == y).float().mean()), "agreement": 100 * float((got == own).float().mean())}

    return Task(network, turned(256, 0)[0].split(32), measure)


def page(rng: np.random.Generator, known: Sequence[str], side: int) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """A page of a few lines of text on paper that is not even, and the boxes around them (left, top, right, bottom)."""
    ramp = np.linspace(-1, 1, side)
    slope = rng.normal(0, 20, 2)
    canvas = rng.uniform(170, 230) + slope[0] * ramp[None, :] + slope[1] * ramp[:, None]
    canvas = canvas[..., None] + rng.normal(0, 6, 3)
    boxes, y = [], int(rng.integers(8, 30))
    while True:
        grey = drawn(line(rng, known, 16), fonts()[int(rng.integers(6))], int(rng.integers(16, 32)), 255, 0)
        h, w = grey.shape
        if y + h > side - 4:
            break
        if w < side - 16:
            left = int(rng.integers(4, side - w - 4))
            strength = (grey / 255.0)[..., None]
            place = canvas[y : y + h, left : left + w]
            canvas[y : y + h, left : left + w] = place * (1 - strength) + rng.uniform(0, 90, 3) * strength
            there = np.argwhere(grey > 100)
            (top, first), (bottom, last) = there.min(0), there.max(0)
            boxes.append((left + first, y + top, left + last + 1, y + bottom + 1))
        y += h + int(rng.integers(6, 40))
    canvas = np.clip(canvas + rng.normal(0, 4, canvas.shape), 0, 255)
    return (canvas / 127.5 - 1).astype(np.float32).transpose(2, 0, 1), boxes


def boxes_in(score: np.ndarray) -> list[tuple[float, ...]]:
    """Boxes of a map of text, as DB's post-processing makes them: connected parts above 0.3 whose mean is above 0.5,
    widened by their area · 1.6 / perimeter (Liao and others, Real-time scene text detection, 2020)."""
    from scipy import ndimage

    labels, _ = ndimage.label(score > 0.3)  # pyright: ignore[reportGeneralTypeIssues]
    found = []
    for rows, columns in ndimage.find_objects(labels):
        h, w = rows.stop - rows.start, columns.stop - columns.start
        if min(h, w) < 3 or score[rows, columns].mean() < 0.5:
            continue
        more = h * w * 1.6 / (2 * (h + w))
        found.append((columns.start - more, rows.start - more, columns.stop + more, rows.stop + more))
    return found


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    both = max(wide, 0) * max(high, 0)
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return both / (area - both)


def detector(wheels: Path) -> Task:
    """PP-OCRv4's detector: F1 of lines found on pages, at an overlap of 0.5 with where they were drawn."""
    path = unpacked(wheels, "rapidocr_onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx")
    rng, known = np.random.default_rng(1), words(1)
    pages = [page(rng, known, 320) for _ in range(24)]
    x = torch.from_numpy(np.stack([image for image, _ in pages]))
    other, words_of_other = np.random.default_rng(0), words(0)
    fitted = torch.from_numpy(np.stack([page(other, words_of_other, 320)[0] for _ in range(64)]))

    def measure(run: Answer) -> dict[str, float]:
        hits = made = there = 0
        for scores, (_, boxes) in zip(torch.cat(answers(run, x, 8)), pages, strict=True):
            got = boxes_in(scores[0].float().numpy())
            made, there = made + len(got), there + len(boxes)
            for box in boxes:
                best = max(got, key=lambda other, box=box: overlap(box, other), default=None)
                if best is not None and overlap(box, best) >= 0.5:
                    hits += 1
                    got.remove(best)
        return {"F1": 200 * hits / max(made + there, 1)}

    return Task(parspike.from_onnx(path), fitted.split(4), measure)


# --------------------------------------------------------------------------------------------------------- sound


def tone(rng: np.random.Generator, pitch: np.ndarray, rate: int) -> np.ndarray:
    """A sound of harmonics above a pitch that may change, in Hz for every sample, with noise."""
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    fall = rng.uniform(0.8, 2.0)
    sound = sum(np.sin(k * phase + rng.uniform(0, 6)) / k**fall * (k * pitch < rate / 2) for k in range(1, 12))
    sound = sound / np.abs(sound).max() * rng.uniform(0.2, 0.8)
    return sound + rng.normal(0, rng.choice([0.001, 0.01, 0.05]), len(pitch))


def pitch(wheels: Path) -> Task:
    """Swift-F0: frames of gliding tones whose pitch is within 50 cents. The network between its spectrogram and its
    decoding is converted, both of which are read from the same file."""
    path = unpacked(wheels, "swift_f0", "swift_f0/model.onnx")
    fixed = {"fmin": 46.875, "fmax": 2093.75}
    calls = [call for _, call in parspike.from_onnx(path, fixed=fixed).order]  # pyright: ignore
    # What the first convolution reads, three spectrograms, and what the decoding begins with.
    spectrum = next(call.inputs[0] for call in calls if call.op == "Conv")
    scores = next(call.outputs[0] for call in calls if call.name == "Transpose_333")
    front = parspike.from_onnx(path, fixed=fixed, outputs=[spectrum])
    network = parspike.from_onnx(path, inputs=[spectrum], outputs=[scores])
    last = parspike.from_onnx(path, fixed=fixed, inputs=[scores], outputs=["pitch"])

    def clips(number: int, seed: int) -> tuple[Tensor, Tensor]:
        rng, made, truth = np.random.default_rng(seed), [], []
        for _ in range(number):
            n = 16000
            t = np.arange(n) / 16000
            base = 2 ** rng.uniform(np.log2(70), np.log2(1200))
            glide = base * 2 ** (rng.uniform(-0.5, 0.5) * t + rng.uniform(0, 0.04) * np.sin(2 * np.pi * 5 * t))
            sound = torch.from_numpy(tone(rng, glide, 16000)).float()
            with torch.no_grad():
                made.append(front(sound[None]))
            truth.append(torch.from_numpy(glide[np.minimum(np.arange(62) * 256, n - 1)]))
        return torch.cat(made), torch.stack(truth)

    x, truth = clips(96, 1)

    def measure(run: Answer) -> dict[str, float]:
        with torch.no_grad():
            got = torch.cat([last(one[None]) for part in answers(run, x, 16) for one in part])
        cents = 1200 * torch.log2(got / truth).abs()[:, 4:-4]
        return {"within 50 cents": 100 * float((cents < 50).float().mean())}

    return Task(network, clips(96, 0)[0].split(16), measure)


def notes(wheels: Path) -> Task:
    """Basic Pitch: F1 of notes sounding in each frame, and of their onsets, of chords that are synthesised."""
    path = unpacked(wheels, "basic_pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx")
    network = parspike.from_onnx(path, outputs=["StatefulPartitionedCall:1", "StatefulPartitionedCall:2"])
    rate, hop, samples = 22050, 256, 43844

    def clips(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        rng, sounds = np.random.default_rng(seed), []
        frames, onsets = torch.zeros(number, 172, 88), torch.zeros(number, 172, 88)
        for place in range(number):
            sound = rng.normal(0, 0.002, samples)
            for _ in range(int(rng.integers(3, 10))):
                key = int(rng.integers(20, 70))
                start = int(rng.integers(0, samples - rate // 2))
                length = int(min(rng.uniform(0.25, 1.0) * rate, samples - start))
                t = np.arange(length) / rate
                note = tone(rng, np.full(length, 27.5 * 2 ** (key / 12)), rate) * np.exp(-t * rng.uniform(0.5, 3))
                sound[start : start + length] += note * np.minimum(1, t / 0.005) * np.minimum(1, t[::-1] / 0.02)
                frames[place, start // hop : (start + length) // hop, key] = 1
                onsets[place, start // hop, key] = 1
            sounds.append(sound / max(1, np.abs(sound).max()))
        return torch.from_numpy(np.stack(sounds)).float().unsqueeze(-1), frames, onsets

    x, frames, onsets = clips(32, 1)

    def measure(run: Answer) -> dict[str, float]:
        parts = answers(run, x, 4)
        sounding = torch.cat([part[0] for part in parts]) > 0.3
        began = torch.cat([part[1] for part in parts])
        # An onset is a peak above 0.5; it is right within two frames, 23 ms, of a note's beginning.
        peak = nn.functional.max_pool1d(began.transpose(1, 2), 5, 1, 2).transpose(1, 2)
        found = ((began == peak) & (began > 0.5)).float()
        near = [nn.functional.max_pool1d(t.transpose(1, 2), 5, 1, 2).transpose(1, 2) for t in (found, onsets)]
        wrong = float((found * (1 - near[1])).sum() + (onsets * (1 - near[0])).sum())
        right = float((found * near[1]).sum() + (onsets * near[0]).sum())
        both = float((sounding * frames).sum())
        return {
            "notes, F1": 200 * both / float(sounding.sum() + frames.sum()),
            "onsets, F1": 100 * right / (right + wrong),
        }

    return Task(network, clips(32, 0)[0].split(4), measure)


def voice(rng: np.random.Generator, seconds: float, rate: int = 16000) -> np.ndarray:
    """Something like speech: pulses of a voice through resonances that move from vowel to vowel, with pauses."""
    from scipy import signal

    made: list[np.ndarray] = []
    base = rng.uniform(90, 240)
    while sum(map(len, made)) < seconds * rate:
        n = int(rng.uniform(0.08, 0.3) * rate)
        pitch_ = base * 2 ** (rng.uniform(-0.2, 0.2) + np.linspace(0, rng.uniform(-0.2, 0.2), n))
        pulses = np.diff(np.floor(np.cumsum(pitch_) / rate), prepend=0)
        source = pulses + rng.normal(0, 0.02, n) if rng.random() < 0.8 else rng.normal(0, 0.2, n)
        for formant, wide in (
            (rng.uniform(300, 800), 80),
            (rng.uniform(900, 2200), 110),
            (rng.uniform(2300, 3000), 160),
        ):
            r = np.exp(-np.pi * wide / rate)
            source = signal.lfilter([1 - r], [1, -2 * r * np.cos(2 * np.pi * formant / rate), r * r], source)
        made.append(source / (np.abs(source).max() + 1e-9) * np.hanning(n) ** 0.3)
        if rng.random() < 0.25:
            made.append(np.zeros(int(rng.uniform(0.05, 0.4) * rate)))
    return np.concatenate(made)[: int(seconds * rate)]


def speech(wheels: Path) -> Task:
    """DNSMOS (P.835): mean absolute error of its three scores, which run from 1 to 5, against the network's own."""
    network = parspike.from_onnx(unpacked(wheels, "speechmos", "speechmos/dnsmos_models/sig_bak_ovr.onnx"))

    def clips(number: int, seed: int) -> Tensor:
        rng, made = np.random.default_rng(seed), []
        for _ in range(number):
            clean = voice(rng, 9.01) * rng.uniform(0.1, 0.6)
            noise = rng.normal(0, 1, len(clean))
            noise = np.cumsum(noise) * 0.02 if rng.random() < 0.3 else noise
            level = np.sqrt((clean**2).mean() / (noise**2).mean()) * 10 ** (-rng.uniform(-5, 45) / 20)
            made.append(np.clip(clean + level * noise, -1, 1))
        return torch.from_numpy(np.stack(made)).float()

    x = clips(16, 1)
    own = torch.cat(answers(network, x, 1))

    def measure(run: Answer) -> dict[str, float]:
        got = torch.cat(answers(run, x, 1))
        spread = float((own - own.mean(0)).abs().mean())
        return {"MOS error": float((got - own).abs().mean()), "error of the mean score": spread}

    return Task(network, clips(16, 0).split(1), measure)


# --------------------------------------------------------------------------------------------------------- files


def files(wheels: Path) -> Task:
    """Magika: agreement on the types of files, and the share whose ending fits the type. The files are those of this
    machine's Python, at most 25 of an ending."""
    folder = "magika"
    path = unpacked(wheels, "magika", f"{folder}/models/standard_v3_3/model.onnx")
    config = json.loads(unpacked(wheels, "magika", f"{folder}/models/standard_v3_3/config.min.json").read_text())
    kinds = json.loads(unpacked(wheels, "magika", f"{folder}/config/content_types_kb.min.json").read_text())
    labels = config["target_labels_space"]
    network = parspike.from_onnx(path)

    def features(data: bytes) -> np.ndarray:
        size, pad = config["beg_size"], config["padding_token"]
        first = np.frombuffer(data[: config["block_size"]].lstrip()[:size], np.uint8)
        last = np.frombuffer(data[-config["block_size"] :].rstrip()[-size:], np.uint8)
        made = np.full(2 * size, pad, np.int32)
        made[: len(first)] = first
        made[2 * size - len(last) :] = last
        return made

    fitting = {label: set(kinds[label]["extensions"]) for label in labels if label in kinds}
    endings = set().union(*fitting.values())
    by_ending: dict[str, list[Path]] = {}
    for root in dict.fromkeys(
        map(Path, (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], "/usr/share"))
    ):
        for base, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                file = Path(base, name)
                ending = file.suffix.lower().removeprefix(".")
                if ending in endings and len(by_ending.setdefault(ending, [])) < 50 and _readable(file):
                    by_ending[ending].append(file)
    chosen = {ending: found for ending, found in sorted(by_ending.items()) if len(found) >= 2}
    pairs = [(ending, file) for ending, found in chosen.items() for file in found]
    x = torch.from_numpy(np.stack([features(file.read_bytes()) for _, file in pairs]))
    tested = [place for place in range(len(pairs)) if place % 2]
    fitted = list(range(0, len(pairs), 2))
    own = torch.cat(answers(network, x[tested], 32)).argmax(1)

    def measure(run: Answer) -> dict[str, float]:
        got = torch.cat(answers(run, x[tested], 32)).argmax(1)
        right = [pairs[place][0] in fitting.get(labels[k], ()) for place, k in zip(tested, got.tolist(), strict=True)]
        return {"agreement": 100 * float((got == own).float().mean()), "fits the ending": 100 * sum(right) / len(right),
                "files": len(tested), "endings": len(chosen)}  # fmt: skip

    order = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(0))[:256]
    return Task(network, x[[fitted[k] for k in order.tolist()]].split(32), measure)


def _readable(file: Path) -> bool:
    try:
        return file.is_file() and not file.is_symlink() and 64 < file.stat().st_size < 10_000_000
    except OSError:
        return False


TASKS = {"recogniser": recogniser, "detector": detector, "direction": direction, "pitch": pitch, "notes": notes,
         "files": files, "speech": speech}  # fmt: skip
TITLES = {
    "recogniser": (
        "rapidocr-onnxruntime, PP-OCRv4 recogniser",
        "characters wrong",
        "64 drawn lines, % of characters wrong",
    ),
    "detector": ("rapidocr-onnxruntime, PP-OCRv4 detector", "F1", "lines found on 24 drawn pages, F1 in %"),
    "direction": ("rapidocr-onnxruntime, direction classifier", "agreement", "256 lines, half turned, agreement in %"),
    "pitch": (
        "swift-f0, between spectrogram and decoding",
        "within 50 cents",
        "gliding tones, % of frames within 50 cents",
    ),
    "notes": ("basic-pitch", "notes, F1", "synthesised chords, F1 of sounding notes in %"),
    "onsets": ("basic-pitch", "onsets, F1", "the same, F1 of onsets in %"),
    "files": ("magika", "agreement", "files of the disk, agreement in %"),
    "endings": ("magika", "fits the ending", "the same, % whose type fits the ending"),
    "speech": (
        "speechmos, DNSMOS sig_bak_ovr",
        "MOS error",
        "synthesised voices in noise, mean error of scores from 1 to 5",
    ),
}
ENCODED = ', encode="all"'
OF = {"onsets": "notes", "endings": "files"}


def figures() -> list[dict[str, Any]]:
    """The figures that the file holds."""
    return [json.loads(text) for text in FIGURES.read_text().splitlines()] if FIGURES.is_file() else []


def keep(key: list[str], scores: dict[str, float], **more: Any) -> None:
    """Write a figure as a line of the file, and print it."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    with FIGURES.open("a") as stream:
        stream.write(json.dumps({"key": key, **scores, **more, "machine": machine}) + "\n")
    print(*key, scores, {k: v for k, v in more.items() if k != "search"}, flush=True)


def run(name: str, options: argparse.Namespace) -> None:
    """Measure a network and its conversions."""
    done = {tuple(figure["key"]) for figure in figures()}
    wanted = [("network", (0, None)), *((code + ENCODED * options.encode, CODES[code]) for code in options.codes)]
    wanted = [(form, how) for form, how in wanted if (name, form) not in done]
    if not wanted:
        return
    task = TASKS[name](options.wheels)
    plan = None
    for form, (T, code) in wanted:
        start = time.perf_counter()
        if form == "network":
            keep([name, form], task.measure(task.network))
            continue
        if plan is None:
            plan = parspike.plan(task.network, task.calibration[0][:2], encode="all" if options.encode else "none")
            print(f"plan: {len(plan.spiking)} layers of neurons, {time.perf_counter() - start:.0f} s", flush=True)
        start = time.perf_counter()
        snn = parspike.convert(plan, task.calibration, T=T, code=code)
        spent = round(time.perf_counter() - start)
        keep([name, form], task.measure(snn), seconds=spent, layers=len(plan.spiking), recipe=snn.provenance["recipe"],
             search=snn.provenance.get("search", {}))  # fmt: skip


def table(before: str) -> str:
    """Markdown: a row a measure, a column a form."""
    del before
    known = {tuple(figure["key"]): figure for figure in figures()}
    rows = ["| file | measure | network | " + " | ".join(CODES) + " |", "|---|---|---|" + "---|" * len(CODES)]
    for row, (title, score, what) in TITLES.items():
        digits = 2 if row == "speech" else 1
        for encoded in ("", ENCODED):
            forms = ("network", *(code + encoded for code in CODES))
            found = [known.get((OF.get(row, row), form), {}).get(score) for form in forms]
            if encoded and not any(f is not None for f in found[1:]):
                continue
            cells = " | ".join("–" if f is None else f"{f:.{digits}f}" for f in found)
            rows.append(f"| {title}{encoded} | {what} | {cells} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*TASKS, []])
    parser.add_argument("--wheels", type=Path, default=ROOT.parent / "ext" / "wheels")
    parser.add_argument("--codes", nargs="+", choices=CODES, default=list(CODES))
    parser.add_argument("--encode", action="store_true", help='encoders everywhere: encode="all"')
    parser.add_argument("--render", type=Path)
    options = parser.parse_args()
    if options.render:
        put(options.render, "onnx_networks", table)
        return
    for name in options.networks or TASKS:
        run(name, options)


if __name__ == "__main__":
    sys.exit(main())
