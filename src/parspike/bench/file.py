"""A bench as a file: which networks, methods, neurons and time-steps are compared, in TOML that can be read and cited.

    T = [2, 4]                      # time-steps of every method, unless it or the network says its own
    methods = ["closed-form", "max-norm"]

    [networks.resnet20]
    spec = "../examples/cifar_resnet.py:resnet20"     # paths count from the bench file's folder
    weights = "../../shared/weights/cifar10-resnet20.safetensors"
    data = "../../shared/data/cifar10-original-part.npz"

    [method.short]                  # a method with options; `methods` names it
    recipe = {name = "reconstruct", steps = 400}
    neurons = ["sorted", "weighted"]

docs/bench.md lists every key.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import parspike.baselines  # noqa: F401 (their names become known)
from parspike.baselines import Baseline
from parspike.calibrate import RECIPES, Recipe, recipe_from_json, recipe_to_json
from parspike.errors import FileError, InputError, OptionError, ParspikeError, check_list, meant, path_of
from parspike.foreign import digest_of
from parspike.neurons import CODES, MAX_T, Kind, Parallel, kind_from_text

__all__ = ["ALL", "Bench", "Cell", "Method", "NetworkTable", "Published", "Training", "bench_names", "kind_named"]

ALL = "all"
"""The word in `methods` for every table [method.…] of the file and every published method of `parspike.baselines`."""
FOLDER = Path(__file__).parent / "benches"
CODE = "SHA-256 of its file"
"""The entry beside a recipe's options that says which code of a user's was measured, so that figures of a file that was
changed since are not taken for its own. No option: options are names of Python."""


@dataclass(frozen=True)
class Cell:
    """One conversion of a bench, and the key of its line in the result file. recipe: as `recipe_to_json` writes it,
    and, of a recipe that is not of this package, `CODE`. neuron: the code of parallel neurons, or the word for neurons
    with a state."""

    network: str
    method: str
    recipe: str
    neuron: str
    T: int
    seed: int

    def __str__(self) -> str:
        return f"{self.network}, {self.method}, {self.neuron}, T={self.T}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {**dataclasses.asdict(self), "recipe": json.loads(self.recipe)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Cell:
        """The inverse of `to_json`. Options that the line's recipe did not have when it was written get their default,
        which is what recipes did before they had them: so figures measured then are found."""
        recipe = dict(values["recipe"])
        kind = RECIPES.get(recipe.get("name", ""))  # code of the user's is not run to read a line
        known = dataclasses.fields(kind) if kind is not None else ()
        defaults = {f.name: f.default for f in known if f.default is not dataclasses.MISSING}
        return cls(**{**values, "recipe": _sorted({**defaults, **recipe})})


@dataclass(frozen=True)
class Method:
    """How networks are converted. recipe: None where the name is a recipe's. neurons: codes of parallel neurons, or
    words for neurons with a state; empty: the recipe's own, or "sorted". T, seeds: instead of the bench's. networks:
    those that it is tried on; empty: all. kind: what tables of kinds of learning call it."""

    recipe: str | Mapping[str, Any] | None = None
    neurons: tuple[str, ...] = ()
    T: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    networks: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class NetworkTable:
    """A network and its data, in the words of the command line. Paths count from the bench file's folder.

    calibration: the data to fit on, `data` itself by default: their part "train" where they have one, else as many
    images as `calibration_images`, drawn by the seed, and all others are measured. limit: of measured images. T,
    methods: instead of the bench's. about: a line for the tables.
    """

    spec: str
    data: str
    weights: str | None = None
    calibration: str | None = None
    size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str | None = None
    channels: int | None = None
    batch_size: int = 64
    calibration_images: int = 1024
    limit: int | None = None
    T: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    about: str = ""

    def preprocessing(self) -> dict[str, Any]:
        """What is said about the preprocessing, by name."""
        names = ("size", "crop", "mean", "std", "interpolation", "channels")
        return {name: value for name in names if (value := getattr(self, name)) not in (None, ())}


@dataclass(frozen=True)
class Published:
    """A figure that somebody published: accuracy in per cent. source: where it stands. network, method: as in the
    bench, or others, which then have a row without a measured figure. steps: where they are more than T."""

    network: str
    method: str
    T: int
    accuracy: float
    source: str
    steps: int | None = None


@dataclass(frozen=True)
class Training:
    """Measured rows of direct training for the tables: a file of JSON lines. Each other entry names the field of a line
    that holds it, with dots for fields of fields. share: whether the accuracy is a share of 1 and no percentage, as in
    what `parspike train --json` prints. seconds: of the training. memory: its largest, MiB. ratio: time of an inference
    pass, as a multiple of the network's without spikes."""

    file: str
    method: str = "method"
    network: str = "network"
    T: str = "T"
    accuracy: str = "accuracy"
    share: bool = False
    seconds: str = "seconds"
    memory: str = "memory_mib"
    ratio: str = "ratio"


@dataclass(frozen=True)
class Bench:
    """Networks × methods × neurons × T × seeds. `Bench.read` reads one from a file.

    T: time-steps. methods: names of recipes (docs/calibration.md, `parspike.baselines`) or of tables [method.…], or
    "all". networks: for the command; Python users give networks to `parspike.bench` itself.
    """

    name: str
    T: tuple[int, ...] = (2, 4, 8, 16, 32)
    methods: tuple[str, ...] = (ALL,)
    seeds: tuple[int, ...] = (0,)
    about: str = ""
    networks: Mapping[str, NetworkTable] = field(default_factory=dict)
    method: Mapping[str, Method] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    training: Training | None = None
    folder: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        for name, kind, example in (("T", int, "(2, 4)"), ("seeds", int, "(0,)"), ("methods", str, "('all',)")):
            check_list(getattr(self, name), name, kind, example)
        networks = [(("networks", name), table) for name, table in self.networks.items()]
        methods = [(("method", name), table) for name, table in self.method.items()]
        for place, table in [((), self), *networks, *methods]:
            for name, least, most in (("T", 1, MAX_T), ("seeds", 0, 2**63 - 1)):
                values = getattr(table, name, ())
                if bad := [n for n in values if not least <= n <= most]:
                    raise _wrong(f"{name} holds {bad[0]}: give whole numbers from {least} to {most}", *place, name)
                if len(set(values)) < len(values):
                    raise _wrong(f"{name} = {list(values)} holds a number twice: give each once", *place, name)
        for name in ("T", "seeds", "methods"):
            if not getattr(self, name):
                raise _wrong(f"{name} holds nothing: give one entry at least", name)
        for place, table in [((), self), *networks]:
            for name in table.methods:
                if name != ALL:
                    with _at(*(("method", name, "recipe") if name in self.method else (*place, "methods"))):
                        self.recipe(name)
        for name, method in self.method.items():
            with _at("method", name, "recipe"):
                self.recipe(name)
            with _at("method", name, "neurons"):
                self.kinds(name)
            if self.networks and (odd := [n for n in method.networks if n not in self.networks]):
                said = f"there is no network '{odd[0]}'{meant(odd[0], self.networks)}"
                raise _wrong(said, "method", name, "networks")
        for place, table in networks:
            for name in ("batch_size", "calibration_images", "limit"):
                if (value := getattr(table, name)) is not None and value < 1:
                    raise _wrong(f"{name} is {value}: give 1 at least", *place, name)

    @classmethod
    def read(cls, path: str | Path) -> Bench:
        """A bench from a .toml file, or by the name of one in this package. Raises `FileError` where it cannot be read,
        `OptionError` with line and remedy for what it cannot hold."""
        path = path_of(path)
        if path.suffix != ".toml":
            if str(path) not in bench_names():
                known = bench_names()
                raise OptionError(
                    f"there is no bench '{path}'{meant(path, known)}: choose {', '.join(known)}, or a .toml file"
                )
            path = FOLDER / f"{path}.toml"
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError as error:
            raise FileError(f"there is no file '{path}'") from error
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{path}: cannot be read ({error})") from error
        return cls.from_toml(text, path)

    @classmethod
    def from_toml(cls, text: str, path: str | Path = "bench.toml") -> Bench:
        """A bench from the text of a file. path: named in messages; paths in the text count from its folder."""
        path = path_of(path)
        if not isinstance(text, str):
            raise OptionError(
                f"from_toml takes the text of a file, got a {type(text).__name__}: Bench.read takes its path"
            )
        try:
            values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers of 5,000 digits, and lists 1,000 deep
            raise OptionError(f"{path}: no valid TOML: {error}") from error
        reader = _Reader(str(path), text)
        values.setdefault("name", path.stem)
        made = reader.read(Bench, values, (), hidden=("folder",))
        try:
            return cls(**made, folder=path.parent)
        except (OptionError, FileError, InputError) as error:
            raise reader.error(getattr(error, PLACE, ()), str(error), type(error)) from error

    def path(self, text: str) -> Path:
        """A path of the file, from its folder."""
        return self.folder / text

    def code(self, text: str) -> str:
        """What names a user's code, with the path of "file.py:name" from the bench file's folder."""
        where, colon, name = text.rpartition(":")
        return f"{self.path(where)}{colon}{name}" if where.endswith(".py") and not text.startswith("{") else text

    def recipe(self, name: str) -> Recipe:
        """The recipe of a method. Raises `OptionError` with near names for an unknown one."""
        method = self.method.get(name)
        asked = name if method is None or method.recipe is None else method.recipe
        if method is None and name not in RECIPES and not name.lstrip().startswith("{") and ":" not in name:
            near = meant(name, [*RECIPES, *self.method])
            try:
                return recipe_from_json(self.code(name))  # "max", "99.9%"
            except OptionError as error:
                raise OptionError(
                    f"there is no method '{name}'{near}: give a recipe ({', '.join(sorted(RECIPES))}), the name of a "
                    f'table [method.…] of this file, or "{ALL}"'
                ) from error
        if isinstance(asked, str):
            return recipe_from_json(self.code(asked))
        if not isinstance(asked.get("name"), str):
            raise OptionError(f"method '{name}': its recipe has no name: give recipe = {{name = \"…\"}}")
        return recipe_from_json({**asked, "name": self.code(asked["name"])})

    def kinds(self, name: str) -> list[Kind]:
        """The neurons that a method is tried with."""
        asked, own = self.method.get(name, Method()).neurons, self.recipe(name).makes
        if own is not None and asked:
            raise OptionError(f"method '{name}': its recipe makes neurons of its own: leave neurons = {asked} out")
        if own is not None:
            return [own]
        if twice := next((word for word in asked if asked.count(word) > 1), None):
            raise OptionError(f"method '{name}': neurons holds '{twice}' twice: give each once")
        try:
            return [kind_named(word) for word in asked or ("sorted",)]
        except OptionError as error:
            raise OptionError(f"method '{name}': {error}") from error

    def methods_of(self, network: str) -> list[str]:
        """The names of the methods that are tried on a network, each once, in order."""
        asked = (table.methods if (table := self.networks.get(network)) else ()) or self.methods
        published = sorted(name for name, recipe in RECIPES.items() if issubclass(recipe, Baseline))
        names: dict[str, None] = {}
        for name in asked:
            names |= dict.fromkeys([*self.method, *published] if name == ALL else [name])
        tried = (name for name in names if name in self.method)
        left_out = {name for name in tried if (only := self.method[name].networks) and network not in only}
        return [name for name in names if name not in left_out]

    def cells(self, networks: Iterable[str] | None = None) -> Iterator[Cell]:
        """Every cell of some networks (default: those of the file), network by network."""
        for network in self.networks if networks is None else networks:
            table = self.networks.get(network)
            for name in self.methods_of(network):
                method, recipe = self.method.get(name, Method()), _key(self.recipe(name))
                for kind in self.kinds(name):
                    for T in method.T or (table.T if table else ()) or self.T:
                        for seed in method.seeds or self.seeds:
                            yield Cell(network, name, recipe, kind.text, T, seed)

    def chosen(self, only: Sequence[str] = (), networks: Iterable[str] | None = None) -> list[Cell]:
        """The cells, of some networks, that `only` leaves: of each kind of words that it holds (networks, methods,
        neurons, "T=4"), one must be the cell's; a word of two kinds is of the first. Raises `OptionError` with near
        names for an unknown word, and where no cell is left."""
        every = [
            (c, (c.network, c.method, c.neuron, f"T={c.T}")) for c in self.cells(None if self.networks else networks)
        ]
        kinds = [set(words) for words in zip(*(words for _, words in every), strict=True)]
        for word in only:
            if not any(word in words for words in kinds):
                known = list(dict.fromkeys(word for words in kinds for word in sorted(words)))
                raise OptionError(f"the bench has no '{word}'{meant(word, known)}: choose among {', '.join(known)}")
        asked: list[set[str]] = []
        for words in kinds:
            asked.append(words.intersection(only).difference(*asked) or words)
        among = None if networks is None else set(networks)
        left = [
            cell for cell, words in every
            if (among is None or cell.network in among) and all(w in a for w, a in zip(words, asked, strict=True))
        ]  # fmt: skip
        if not left:
            raise OptionError(
                f"no cell of the bench is {', '.join(only)} at once" if only else "the bench has no cells"
            )
        return left


def bench_names() -> list[str]:
    """The benches in this package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def kind_named(word: str) -> Kind:
    """The kind of neurons by its word: a code of parallel ones, or what `kind_from_text` knows."""
    if word in CODES:
        return Parallel(word)  # pyright: ignore[reportArgumentType]
    try:
        return kind_from_text(word)
    except OptionError as error:
        raise OptionError(f"'{word}' are no neurons: choose {', '.join(CODES)}, if, if-zero or lif:0.9") from error


def _key(recipe: Recipe) -> str:
    """What a recipe is, as text: its name, its options, and which code it is where it is the user's."""
    cls = type(recipe)
    digest = None if cls.__module__.partition(".")[0] == "parspike" else digest_of(cls)
    return _sorted(recipe_to_json(recipe) | ({} if digest is None else {CODE: digest}))


def _sorted(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, sort_keys=True)


PLACE = "place_in_bench"
"""The attribute of an error of a bench that says where it is: the names of tables, then of the entry."""


def _wrong(text: str, *place: str) -> OptionError:
    """An error at a place, which is said in words too: a bench may be made without a file."""
    words = {"networks": "network", "method": "method"}
    error = OptionError(f"{words[place[0]]} '{place[1]}': {text}" if len(place) > 2 else text)
    setattr(error, PLACE, place)
    return error


@contextmanager
def _at(*place: str) -> Iterator[None]:
    """Errors within are at this place."""
    try:
        yield
    except (OptionError, FileError, InputError) as error:
        setattr(error, PLACE, place)
        raise


class _Reader:
    """Turns the tables of a TOML file into dataclasses; errors name the line."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text

    def read(self, cls: Any, values: Any, table: tuple[str, ...], hidden: Sequence[str] = ()) -> Any:
        """A dataclass from a table; at the top its entries by name. table: the names of its header."""
        if not isinstance(values, Mapping):
            raise self.error(table, f"'{table[-1]}' is {values!r}: give a table [{'.'.join(table)}]")
        known = {f.name: f for f in fields(cls) if f.name not in hidden}
        for name in values:
            if name not in known:
                where = f" in {_header(table)}" if table else ""
                raise self.error(
                    (*table, name), f"unknown key '{name}'{where}{meant(name, known)}; known are {', '.join(known)}"
                )
        need = [f.name for f in known.values() if f.default is f.default_factory is dataclasses.MISSING]
        if missing := [name for name in need if name not in values]:
            raise self.error(table, f"{_header(table)} has no {', '.join(missing)}: add it")
        made = {name: self.value(str(known[name].type), value, (*table, name)) for name, value in values.items()}
        return cls(**made) if table else made

    def value(self, wanted: str, value: Any, place: tuple[str, ...]) -> Any:
        """A value in the type of its field."""
        if wanted in ("Mapping[str, NetworkTable]", "Mapping[str, Method]"):
            cls = NetworkTable if "NetworkTable" in wanted else Method
            if not isinstance(value, Mapping):
                raise self.error(place, f"'{place[0]}' is {value!r}: give tables [{place[0]}.NAME]")
            return {name: self.read(cls, one, (*place, name)) for name, one in value.items()}
        if wanted == "tuple[Published, ...]":
            if not isinstance(value, list):
                raise self.error(place, f"'published' is {value!r}: give tables [[published]]")
            return tuple(self.read(Published, one, (*place, str(number))) for number, one in enumerate(value))
        if wanted == "Training | None":
            return self.read(Training, value, place)
        if wanted.startswith("tuple[") and not isinstance(value, list):
            value = [value]  # methods = "all"
        one = wanted.removeprefix("tuple[").removesuffix(", ...]")
        kinds: dict[str, Any] = {
            "str": str, "int": int, "float": (int, float), "bool": bool, "str | None": str, "int | None": int,
            "str | Mapping[str, Any] | None": (str, Mapping),
        }  # fmt: skip
        for item in value if wanted.startswith("tuple[") else [value]:
            if not isinstance(item, kinds[one]) or isinstance(item, bool) != (one == "bool"):
                words = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
                said = words.get(one.partition(" ")[0], one)
                raise self.error(place, f"{place[-1]} = {repr(value)[:200]}: give {said}")
        return tuple(value) if wanted.startswith("tuple[") else value

    def error(self, place: tuple[str, ...], text: str, kind: type[ParspikeError] = OptionError) -> ParspikeError:
        """An error at a place in the file."""
        line = self.line(place) if place else None
        return kind(f"{self.path}{'' if line is None else f', line {line}'}: {text[:1000]}")

    def line(self, place: tuple[str, ...]) -> int | None:
        """The line of an entry, of its table where the entry is not found."""
        table: tuple[str, ...] = ()
        many: dict[tuple[str, ...], int] = {}
        best = None
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"\s*\[(\[)?([^\[\]]+)\]", line):
                table = tuple(part.strip().strip("\"'") for part in header[2].split("."))
                if header[1]:
                    many[table] = many.get(table, -1) + 1
                    table = (*table, str(many[table]))
                if table[: len(place)] == place and best is None:
                    best = number
                continue
            key = re.match(r"""\s*("[^"]*"|'[^']*'|[\w-]+)\s*[=.]""", line)
            if key and (*table, key[1].strip("\"'")) == place:
                return number
        return best


def _header(table: tuple[str, ...]) -> str:
    """A table as its header in the file."""
    return "[[published]]" if table[0] == "published" else f"[{'.'.join(table)}]"
