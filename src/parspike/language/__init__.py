"""Language models: Hugging Face folders and GGUF files as networks, text as tokens, networks that write text."""

from parspike.language.generate import generate, pieces
from parspike.language.model import HEADS, LanguageModel, language
from parspike.language.tokens import Tokenizer

__all__ = ["HEADS", "LanguageModel", "Tokenizer", "generate", "language", "pieces"]
