"""Spike files: exact round trips, the layout to the bit as docs/spikes.md says it, and every file that is refused."""

from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike.baselines import HMT, Burst
from parspike.errors import FileError, InputError, MissingExtraError, OptionError
from parspike.neurons import IntegrateFire
from parspike.spikes import layout, text, write

X = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
ENDINGS = ("t.npz", "t.h5", "t.aedat.txt")
EVENT = [("sample", "<u4"), ("step", "<u4"), ("layer", "<u2"), ("neuron", "<u4")]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 13), nn.ReLU(), nn.Linear(13, 3)
        ).eval()


MADE: dict[str, dict[str, Any]] = {
    "sorted": {"T": 8},
    "weighted": {"T": 4, "code": "weighted"},
    "onset": {"T": 4, "code": "onset"},
    "steps": {"T": 8, "layers": {"4": parspike.Steps(3)}},
    "if": {"T": 5, "neuron": parspike.IF(v_init="half")},
    "lif": {"T": 5, "neuron": parspike.LIF(0.9, reset="zero", v_init="half")},
    "signed": {"T": 9, "neuron": parspike.IF(signed=True, v_init="half")},
    "burst": {"T": 4, "recipe": Burst(5)},
    "many": {"T": 4, "recipe": Burst(1000)},
    "h-mt": {"T": 4, "recipe": HMT(3)},
}


def trains_of(snn: parspike.SNN) -> dict[str, Tensor]:
    """The trains for X, run in the batches that are written: kernels may round otherwise for another batch size."""
    runs = [snn.run(x, record=True).spikes for x in X.split(8)]
    return {layer: torch.cat([run[layer] for run in runs], 1) for layer in runs[0]}


@pytest.fixture(scope="module")
def snns() -> dict[str, parspike.SNN]:
    return {}


@pytest.fixture
def snn_of(snns: dict[str, parspike.SNN]) -> Callable[[str], parspike.SNN]:
    """A network by the name of its kind, converted once."""

    def get(kind: str) -> parspike.SNN:
        if kind not in snns:
            snns[kind] = parspike.convert(network(), X, **{"recipe": "max", **MADE[kind]})
            if kind == "signed":  # so that spikes really are taken back
                for neuron in snns[kind].neurons().values():
                    neuron.bias.data = -torch.arange(9.0).reshape(9, *[1] * (neuron.bias.dim() - 1)) * 0.05
        return snns[kind]

    return get


@pytest.fixture
def snn(snn_of: Callable[[str], parspike.SNN]) -> parspike.SNN:
    return snn_of("sorted")


@pytest.fixture
def file(snn: parspike.SNN, tmp_path: Path) -> Callable[..., Path]:
    """A small file of spikes by its name and form."""

    def make(name: str, form: str | None = None) -> Path:
        return parspike.write_spikes(snn, X.split(8), tmp_path / name, form=form)

    return make


# -------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("kind", MADE)
def test_trains_come_back_as_they_were(kind: str, snn_of: Callable[[str], parspike.SNN], tmp_path: Path) -> None:
    snn = snn_of(kind)
    wanted = trains_of(snn)
    types = {str(train.dtype).removeprefix("torch.") for train in wanted.values()}
    assert types == {{"signed": "int8", "burst": "int8", "many": "int32", "h-mt": "int8"}.get(kind, "bool")}
    if kind == "signed":
        assert any(bool((train < 0).any()) for train in wanted.values())
    if kind in ("burst", "h-mt"):
        assert any(bool((train > 1).any()) for train in wanted.values())
    for name, form in (
        ("t.npz", "bits"),
        ("t.h5", "bits"),
        ("e.npz", "events"),
        ("e.h5", "events"),
        (ENDINGS[2], None),
    ):
        spikes = parspike.read_spikes(parspike.write_spikes(snn, X.split(8), tmp_path / name, form=form, dt=7))
        assert (spikes.T, spikes.samples, spikes.dt, spikes.form) == (snn.T, 20, 7, form or "events")
        assert list(spikes.spikes) == list(wanted)
        for layer, train in wanted.items():
            assert spikes.spikes[layer].dtype == train.dtype
            assert torch.equal(spikes.spikes[layer], train), (name, layer)
        batches = list(spikes.batches())
        assert [len(next(iter(batch.values()))[0]) for batch in batches] == [8, 8, 4]
        assert torch.equal(torch.cat([batch["1"] for batch in batches], 1), wanted["1"])


@pytest.mark.parametrize("kind", [kind for kind in MADE if kind != "h-mt"])
def test_amplitudes_and_rest_give_the_current(kind: str, snn_of: Callable[[str], parspike.SNN], tmp_path: Path) -> None:
    snn = snn_of(kind)
    spikes = parspike.read_spikes(parspike.write_spikes(snn, X, tmp_path / "t.npz"))
    inside: dict[str, Tensor] = {}
    if snn.over_time:
        seen: dict[str, list[Tensor]] = {}
        snn.watched({"input": X}, lambda name, current, *_: seen.setdefault(name, []).append(current))
        inside = {name: torch.cat(parts).mean(0) for name, parts in seen.items()}
    else:
        run = snn.run(X, record=True)
        layer = {node.name: node.layer for node in snn.graph.neurons}
        inside = {name: neuron.value(run.counts[layer[name]]) for name, neuron in snn.counting().items()}
    for node in snn.graph.neurons:
        train, amplitudes, rest = spikes.spikes[node.layer], spikes.amplitudes(node.layer), spikes.rest(node.layer)
        assert amplitudes is not None
        assert rest is not None
        current = (train * amplitudes.unsqueeze(1)).sum(0) / snn.T + rest
        torch.testing.assert_close(current, inside[node.name].double(), rtol=1e-5, atol=1e-6)


def test_levels_that_a_spike_does_not_say_have_no_amplitude(
    snn_of: Callable[[str], parspike.SNN], tmp_path: Path
) -> None:
    spikes = parspike.read_spikes(parspike.write_spikes(snn_of("h-mt"), X, tmp_path / "t.npz"))
    assert spikes.amplitudes("1") is None
    assert float(spikes.rest("1")) == 0


def test_a_run_and_the_twin_are_written_too(snn: parspike.SNN, tmp_path: Path) -> None:
    run = snn.run(X, engine="serial-if", record=True)
    spikes = parspike.read_spikes(parspike.write_spikes(snn, run, tmp_path / "t.npz"))
    assert all(torch.equal(spikes.spikes[layer], train) for layer, train in run.spikes.items())
    assert spikes.layers["1"].code == "if"
    assert not torch.equal(spikes.spikes["1"], snn.run(X, record=True).spikes["1"])


def test_a_silent_run_has_no_events(snn: parspike.SNN, tmp_path: Path) -> None:
    dark = -100 * torch.ones(3, 1, 6, 6)
    for neuron in snn.neurons().values():
        neuron.shift.data -= 1000
    try:
        for name in ENDINGS:
            spikes = parspike.read_spikes(parspike.write_spikes(snn, dark, tmp_path / name, form="events"))
            assert not any(bool(train.any()) for train in spikes.spikes.values())
            assert spikes.summary()[0].silent == 1
    finally:
        for neuron in snn.neurons().values():
            neuron.shift.data += 1000


def test_equal_trains_give_equal_files(snn: parspike.SNN, tmp_path: Path) -> None:
    for name in ENDINGS:
        one, two = (parspike.write_spikes(snn, X.split(8), tmp_path / f"{n}{name}").read_bytes() for n in "ab")
        assert one == two, name


# ------------------------------------------------------------------------------------- the layout, from the page alone


def test_bits_stand_where_the_page_says(snn: parspike.SNN, file: Callable[..., Path]) -> None:
    train = trains_of(snn)["4"].numpy()
    with zipfile.ZipFile(file("t.npz")) as archive:
        header = json.loads(archive.read("header.json"))
        content = archive.read("spikes/00001/00001.npy")
    assert header["layers"][1] == {"name": "4", "shape": [13], "T": 8, "code": "sorted", "type": "bool"}
    assert header["batches"] == [8, 8, 4]
    data = content[-8 * 8 * 2 :]  # T × samples × 2 bytes for 13 neurons
    for step in range(8):
        for sample in range(8):
            row = data[(step * 8 + sample) * 2 :][:2]
            for neuron in range(13):
                bit = row[neuron // 8] >> (7 - neuron % 8) & 1
                assert bit == train[step, 8 + sample, neuron]
            assert row[1] & 0b111 == 0
    loaded = np.load(file("again.npz"))
    np.testing.assert_array_equal(loaded["spikes/00001/00001"].tobytes(), data)


def test_events_stand_as_the_page_says(snn: parspike.SNN, file: Callable[..., Path]) -> None:
    trains = [train.flatten(2).numpy() for train in trains_of(snn).values()]
    wanted = [
        (sample, step, layer, neuron)
        for sample in range(20)
        for step in range(8)
        for layer, train in enumerate(trains)
        for neuron in np.flatnonzero(train[step, sample])
    ]
    lines = file("t.aedat.txt").read_text().splitlines()
    assert lines[0] == "#!parspike-spikes 1"
    assert lines[2] == "# timestamp sample step layer neuron"
    assert lines[3:-1] == [f"{(e[0] * 8 + e[1]) * 1000} {e[0]} {e[1]} {e[2]} {e[3]}" for e in wanted]
    assert lines[-1] == f'# end {{"events":{len(wanted)},"batches":[8,8,4]}}'
    with np.load(file("t.npz", "events")) as archive:
        found = np.concatenate([archive[f"events/{n:05d}"] for n in range(3)])
    assert found.dtype == np.dtype(EVENT)
    assert found.tolist() == wanted
    with h5py.File(file("t.h5", "events")) as hdf:
        assert np.concatenate([hdf[f"events/{n:05d}"][()] for n in range(3)]).tolist() == wanted


def test_a_file_made_from_the_page_alone_is_read(tmp_path: Path) -> None:
    layers = [{"name": "a", "shape": [3, 3], "T": 2, "code": "mine", "type": "bool"},
              {"name": "b", "shape": [2], "T": 1, "code": "mine", "type": "int8"}]  # fmt: skip
    header = {"format": "parspike-spikes", "version": 1, "form": "bits", "T": 2, "dt": 5, "layers": layers,
              "batches": [1], "note": {}}  # fmt: skip
    arrays = {"spikes/00000/00000": np.array([[[0b10000000, 0]], [[0b00000001, 0b10000000]]], np.uint8),
              "spikes/00000/00001": np.array([[[-1, 3]]], np.int8)}  # fmt: skip
    np.savez(tmp_path / "t.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "t.npz", "a") as archive:
        archive.writestr("header.json", json.dumps(header))
    with h5py.File(tmp_path / "t.h5", "w") as hdf:
        for name, array in {**arrays, "header.json": np.frombuffer(json.dumps(header).encode(), np.uint8)}.items():
            hdf[name] = array
    for name in ("t.npz", "t.h5"):
        spikes = parspike.read_spikes(tmp_path / name)
        assert spikes.spikes["a"].nonzero().tolist() == [[0, 0, 0, 0], [1, 0, 2, 1], [1, 0, 2, 2]]
        assert spikes.spikes["b"].tolist() == [[[-1, 3]]]
        assert [e.tolist() for e in spikes.events()] == [[(0, 0, 0, 0, 1), (0, 0, 1, 0, -1), (0, 0, 1, 1, 3),
                                                          (0, 1, 0, 7, 1), (0, 1, 0, 8, 1)]]  # fmt: skip
        assert spikes.rest("a") is None
        a, b = spikes.summary()
        assert (a.spikes, a.rate, a.silent, a.first, a.median, a.last) == (3, 3 / 18, 1 - 3 / 9, 0, 1, 1)
        assert (b.spikes, b.rate, b.silent) == (4, 2.0, 0)
        assert spikes.raster("b").splitlines() == ["0 -", "1 3"]
        assert spikes.raster("a", neurons=[8, 0]).splitlines() == ["8 .|", "0 |."]


# ------------------------------------------------------------------------------------------------------ summary


@pytest.mark.parametrize("name", [*ENDINGS, "signed.npz"])
def test_the_summary_is_that_of_the_trains(name: str, snn_of: Callable[[str], parspike.SNN], tmp_path: Path) -> None:
    snn = snn_of("signed" if "signed" in name else "sorted")
    forms = (None, "events")
    found = [
        parspike.read_spikes(parspike.write_spikes(snn, X.split(8), tmp_path / f"{form}{name}", form=form))
        for form in forms
    ]
    assert found[0].summary() == found[1].summary()
    for row, train in zip(found[0].summary(), trains_of(snn).values(), strict=True):
        sizes = train.abs() if train.dtype != torch.bool else train
        fires = (train != 0).any(0)
        first = (train != 0).int().argmax(0)[fires]
        assert row.spikes == int(sizes.sum())
        assert row.rate == pytest.approx(float(sizes.float().mean()))
        assert row.silent == pytest.approx(1 - float(fires.float().mean()))
        assert (row.first, row.last) == (int(first.min()), int(first.max()))
        assert row.median == np.median(first.numpy())
    rasters = [one.raster("1", sample=9, neurons=[5, 100], steps=6) for one in found]
    assert rasters[0] == rasters[1]
    wanted = trains_of(snn)["1"][:6, 9].flatten(1)[:, [5, 100]].T.tolist()
    marks = {0: ".", 1: "|", -1: "-"}
    assert rasters[0].splitlines() == [
        f"{n:>3} " + "".join(marks[int(v)] for v in row) for n, row in zip((5, 100), wanted, strict=True)
    ]


def test_what_is_not_there_is_named(file: Callable[..., Path]) -> None:
    spikes = parspike.read_spikes(file("t.npz"))
    for call, part in (
        (lambda: spikes.raster("2"), "has no layer '2'"),
        (lambda: spikes.spikes["x"], "has no layer 'x'"),
        (lambda: spikes.raster("4", sample=20), "numbered 0 … 19"),
        (lambda: spikes.raster("4", neurons=[13]), "numbered 0 … 12"),
    ):
        with pytest.raises(OptionError, match=part):
            call()


# ------------------------------------------------------------------------------------------- whole, in bounded memory


def test_batches_are_written_as_they_come(snn: parspike.SNN, tmp_path: Path) -> None:
    sizes: list[int] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(6):
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield X.repeat(40, 1, 1, 1)

    parspike.write_spikes(snn, batches(), tmp_path / "t.npz")
    grown = np.diff(sizes[1:])
    assert (grown > 50_000).all(), sizes


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError("the loader's own"), InputError("x")])
def test_what_stops_leaves_no_file(name: str, stop: BaseException, snn: parspike.SNN, tmp_path: Path) -> None:
    def batches() -> Iterator[Tensor]:
        yield X
        raise stop

    with pytest.raises(type(stop)) as caught:
        parspike.write_spikes(snn, batches(), tmp_path / name)
    assert caught.value is stop
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ENDINGS)
def test_a_full_disk_is_one_error(name: str, snn: parspike.SNN, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(FileError, match="cannot write"):
            parspike.write_spikes(snn, [X.repeat(40, 1, 1, 1)] * 3, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_asked(snn: parspike.SNN, tmp_path: Path) -> None:
    path = parspike.write_spikes(snn, X, tmp_path / "t.npz")
    old = path.read_bytes()
    with pytest.raises(FileError, match=r"exists.*force=True"):
        parspike.write_spikes(snn, X[:2], path)
    assert path.read_bytes() == old
    parspike.write_spikes(snn, X[:2], path, force=True)
    assert parspike.read_spikes(path).samples == 2


def test_what_cannot_be_written_is_refused(snn: parspike.SNN, tmp_path: Path) -> None:
    class Other:
        pass

    run = snn.run(X[:2])
    for arguments, kind, part in (
        ((snn, X, "t.txt"), OptionError, "ends in .npz"),
        ((snn, X, "t.aedat.txt", "bits"), OptionError, "a text holds events"),
        ((snn, X, "t.npz", "rate"), OptionError, "bits, events"),
        ((snn, X[:, :, :5], "t.npz"), InputError, "batch 0 of the data"),
        ((snn, [], "t.npz"), InputError, "the data are empty"),
        ((snn, run, "t.npz"), OptionError, "record=True"),
        ((Other(), X, "t.npz"), InputError, "got Other"),
        ((snn, X, ""), OptionError, "ends in .npz"),
        ((snn, X, "none/t.npz"), FileError, "there is no folder"),
    ):
        model, data, name, form = (*arguments, None)[:4]
        with pytest.raises(kind, match=part):
            parspike.write_spikes(model, data, tmp_path / name, form=form)
    for option, value in (("dt", 0), ("dt", 0.5), ("note", {"a": float("nan")}), ("note", {"a": object()})):
        with pytest.raises(OptionError, match=option):
            parspike.write_spikes(snn, X, tmp_path / "t.npz", **{option: value})
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        parspike.write_spikes(snn, X, tmp_path / "folder.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npz"]


def test_hdf5_without_its_package(
    snn: parspike.SNN, file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("t.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    for call in (lambda: parspike.write_spikes(snn, X, tmp_path / "u.h5"), lambda: parspike.read_spikes(path)):
        with pytest.raises(MissingExtraError, match=r"parspike\[export\]"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


# ------------------------------------------------------------------------------------------------- hostile files


def changed(path: Path, change: Callable[[dict[str, bytes]], None], compress: int = zipfile.ZIP_STORED) -> None:
    """An .npz with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def header(**entries: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        value = {**json.loads(members["header.json"]), **entries}
        members["header.json"] = json.dumps({k: v for k, v in value.items() if v is not None}).encode()

    return change


def array(name: str, value: np.ndarray, pickled: bool = False) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        import io

        stream = io.BytesIO()
        np.lib.format.write_array(stream, value, allow_pickle=pickled)
        members[f"{name}.npy"] = stream.getvalue()

    return change


def bomb(members: dict[str, bytes]) -> None:
    members["header.json"] = members["header.json"].replace(b'"batches": [8, 8, 4]', b'"batches": [8, 8, 4000000000]')
    members["spikes/00002/00000.npy"] = members["spikes/00002/00000.npy"].replace(b"(8, 4, 14)", b"(8, 4000000000, 14)")


ONE = np.array([(0, 0, 0, 0)], EVENT)


@pytest.mark.parametrize(
    ("form", "change", "part"),
    [
        ("bits", array("spikes/00000/00000", np.array([{}]), pickled=True), "holds object"),
        ("bits", bomb, "bytes|no head"),
        ("bits", header(T=0), "T is 0"),
        ("bits", header(T=1 << 40), "T is 1099511627776"),
        ("bits", header(version=2), "upgrade"),
        ("bits", header(form="rate"), "bits or events"),
        ("bits", header(format="other"), "no file of spikes"),
        ("bits", header(dt=None), "other entries"),
        ("bits", header(batches=[8, 8, 4, 1]), "arrays, expected"),
        ("bits", header(batches=[8, 8, 5]), "has the shape"),
        ("bits", header(batches=[1] * 100_000), "arrays, expected"),
        ("bits", header(layers=[]), "arrays, expected"),
        ("bits", header(layers=[{"name": "a", "shape": [1 << 40], "T": 8, "code": "x", "type": "bool"}]), "a size of"),
        ("bits", array("spikes/00000/00000", np.zeros((8, 8, 14), np.int8)), "holds int8"),
        ("bits", array("spikes/00000/00001", np.full((8, 8, 2), 255, np.uint8)), "behind its last neuron"),
        ("bits", array("spikes/00000/00000", np.asfortranarray(np.zeros((8, 8, 14), np.uint8))), "row by row"),
        ("bits", array("amplitudes/00000", np.ones((3, 1, 1, 1))), "not for 1 or 8"),
        ("bits", array("amplitudes/00000", np.full((1, 1, 1, 1), np.nan)), "NaN"),
        ("bits", array("rest/00001", np.ones(5)), "does not fit"),
        ("bits", array("more/00000", np.ones(5)), "arrays, expected"),
        ("bits", array("../../x", np.ones(5)), "belongs to no file"),
        ("bits", lambda m: m.update({"header.json": b"[" * 100_000}), "RecursionError|no file of spikes"),
        ("bits", lambda m: m.pop("header.json"), "no header.json"),
        ("bits", lambda m: m.pop("spikes/00001/00000.npy"), "arrays, expected"),
        ("bits", lambda m: m.update({"spikes/00001/00000.npy": m["spikes/00001/00000.npy"][:-1]}), "bytes"),
        ("events", array("events/00000", np.repeat(ONE, 2)), "does not come after"),
        ("events", array("events/00000", np.array([(0, 1, 0, 0), (0, 0, 0, 0)], EVENT)), "event 1 .* not come"),
        ("events", array("events/00000", np.array([(8, 0, 0, 0)], EVENT)), "sample 8"),
        ("events", array("events/00000", np.array([(0, 8, 0, 0)], EVENT)), "step 8"),
        ("events", array("events/00000", np.array([(0, 0, 2, 0)], EVENT)), "does not name"),
        ("events", array("events/00000", np.array([(0, 0, 1, 13)], EVENT)), "neuron 13"),
        ("events", array("events/00000", np.zeros(3, "<u4")), "holds uint32"),
        ("events", array("events/00000", ONE.reshape(1, 1)), "shape"),
    ],
)  # fmt: skip
def test_a_hostile_npz_is_refused(
    form: str, change: Callable[[dict[str, bytes]], None], part: str, file: Callable[..., Path]
) -> None:
    path = file("t.npz", form)
    changed(path, change)
    refused(path, part)


def refused(path: Path, part: str) -> None:
    with pytest.raises(FileError, match=part) as caught:
        parspike.read_spikes(path)
    assert type(caught.value) is FileError
    assert str(path) in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_a_zip_bomb_and_a_torn_zip_are_refused(file: Callable[..., Path]) -> None:
    path = file("t.npz")
    whole = path.read_bytes()
    changed(path, lambda members: members.update({"spikes/00000/00000.npy": bytes(1 << 22)}), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    refused(path, "compressed")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "BadZipFile")
    place = whole.index(b"\x93NUMPY") + 2000
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    refused(path, "CRC")


def test_numbers_are_checked_before_memory_is_taken(file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that claim 448 GB: refused while numpy may make arrays of 1 MB at most."""
    path = file("t.npz")
    changed(path, bomb)
    hdf = file("t.h5")
    with h5py.File(hdf, "a") as opened:
        del opened["spikes/00000/00000"]
        opened.create_dataset("spikes/00000/00000", (8, 8, 7_000_000_000), "u1", chunks=(1, 1, 1 << 20))
    for one, part in ((path, "bytes|no head"), (hdf, "not stored as it is")):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused(one, part)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def _external(hdf: h5py.File, outside: Path) -> None:
    del hdf["spikes/00000/00000"]
    hdf["spikes/00000/00000"] = h5py.ExternalLink(str(outside), "secret")


def _soft(hdf: h5py.File, outside: Path) -> None:
    del hdf["spikes/00000/00000"]
    hdf["spikes/00000/00000"] = h5py.SoftLink("/spikes/00001/00000")


def _stored_outside(hdf: h5py.File, outside: Path) -> None:
    del hdf["spikes/00000/00000"]
    hdf.create_dataset("spikes/00000/00000", (8, 8, 14), "u1", external=[(str(outside), 0, 896)])


def _virtual(hdf: h5py.File, outside: Path) -> None:
    del hdf["spikes/00000/00000"]
    layout = h5py.VirtualLayout((8, 8, 14), "u1")
    layout[:] = h5py.VirtualSource(str(outside), "secret", (8, 8, 14))
    hdf.create_virtual_dataset("spikes/00000/00000", layout)


def _compressed(hdf: h5py.File, outside: Path) -> None:
    del hdf["spikes/00000/00000"]
    hdf.create_dataset("spikes/00000/00000", data=np.zeros((8, 8, 14), "u1"), compression="gzip")


def _huge(hdf: h5py.File, outside: Path) -> None:
    del hdf["spikes/00000/00000"]
    hdf.create_dataset("spikes/00000/00000", (8, 8, 1 << 40), "u1")  # never written: nothing is there


def _texts(hdf: h5py.File, outside: Path) -> None:
    del hdf["spikes/00000/00000"]
    hdf["spikes/00000/00000"] = "text"


def _deep(hdf: h5py.File, outside: Path) -> None:
    hdf["spikes/00000/more/still"] = np.zeros(3)


def _cycle(hdf: h5py.File, outside: Path) -> None:
    hdf["spikes/00000/again"] = hdf["spikes"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_external, "link to another place"), (_soft, "link to another place"), (_stored_outside, "not stored as it"),
        (_virtual, "not stored as it is"), (_compressed, "not stored as it is"), (_huge, "does not hold"),
        (_texts, "not stored as it is|no numbers"), (_deep, "belongs to no"), (_cycle, "belongs to no"),
    ],
)  # fmt: skip
def test_a_hostile_hdf5_is_refused(change: Callable[[Any, Path], None], part: str, file: Callable[..., Path]) -> None:
    path = file("t.h5")
    outside = path.with_name("outside.h5")
    with h5py.File(outside, "w") as hdf:
        hdf["secret"] = np.zeros((8, 8, 14), "u1")
    with h5py.File(path, "a") as hdf:
        change(hdf, outside)
    refused(path, part)


def test_a_torn_hdf5_is_refused(file: Callable[..., Path]) -> None:
    path = file("t.h5")
    whole = path.read_bytes()
    for length in (9, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "damaged|does not hold|no file")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (b"\n# end ", b"\n# fin ", "truncated"),
        (b'{"events":', b'{"events":1', "its last line says"),
        (b'"batches":[8,8,4]', b'"batches":[8,8,3]', "sample 19"),
        (b'"T":8', b'"T":9', "timestamp"),
        (b'"version":1', b'"version":7', "upgrade"),
        (b"neuron\n", b"neuron value\n", "columns"),
        (b"\n0 0 0 ", b"\n0 0 0 x", "line 4 is no event"),
        (b"\n0 0 0 ", b"\n-1 0 0 ", "line 4 is no event"),
        (b"\n0 0 0 1 ", b"\n0 0 0 1 999999999 ", "is no event"),
        (b"\n0 0 0 1 ", b"\n0 0 0 70000 ", "layer of an event is too large"),
        (b'"values":[', b'"values":[true,', "no array of numbers"),
        (b'"values":[', b'"values":[1e999,', "no finite number"),
        (b'"form":"events"', b'"form":"bits"', "text holds events"),
        (b'"tables":{', b'"tables":{"rest/00009":{"shape":[],"values":[0]},', "belongs to no layer"),
    ],
)
def test_a_changed_text_is_refused(old: bytes, new: bytes, part: str, file: Callable[..., Path]) -> None:
    path = file("t.aedat.txt")
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    refused(path, part)


def test_a_torn_text_is_refused(file: Callable[..., Path]) -> None:
    path = file("t.aedat.txt")
    whole = path.read_bytes()
    for length in (5, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "truncated|no file of spikes|no header")
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:10], lines[11], lines[10], *lines[12:]]))
    refused(path, "does not come after")
    path.write_bytes(b"".join([*lines[:10], *lines[11:]]))
    refused(path, "its last line says")


def test_no_train_of_events_is_made_that_no_memory_holds(file: Callable[..., Path]) -> None:
    path = file("t.npz", "events")
    big = [{"name": "a", "shape": [1 << 31], "T": 8, "code": "x", "type": "bool"},
           {"name": "b", "shape": [13], "T": 8, "code": "x", "type": "bool"}]  # fmt: skip
    changed(path, header(layers=big))
    changed(path, lambda m: [m.pop(name) for name in list(m) if name.startswith(("amplitudes", "rest"))])
    spikes = parspike.read_spikes(path)
    with pytest.raises(FileError, match=r"take events\(\)"):
        spikes.spikes["a"]
    assert sum(map(len, spikes.events())) == sum(row.spikes for row in spikes.summary())


def test_a_file_that_changes_is_told(snn: parspike.SNN, file: Callable[..., Path]) -> None:
    path = file("t.npz")
    spikes = parspike.read_spikes(path)
    parspike.write_spikes(snn, X[:3], path, force=True)
    with pytest.raises(FileError, match="has changed"):
        spikes.spikes["1"]


def test_other_files_are_no_spikes(tmp_path: Path) -> None:
    for name, content in (("a.npz", b""), ("b.npz", b"hello"), ("c.h5", b"\x89HDF\r\n\x1a\n" + bytes(100))):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "no file of spikes")
    np.savez(tmp_path / "d.npz", images=np.zeros(3))
    refused(tmp_path / "d.npz", "no header.json")
    refused(tmp_path / "none.npz", "there is no file")
    refused(tmp_path, "is a folder")


# --------------------------------------------------------------------------------------------------- command line


def test_the_command_line_writes_and_shows(snn: parspike.SNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parspike.cli import app

    monkeypatch.chdir(tmp_path)
    snn.save("net.parspike")
    np.savez("data.npz", images=X[:, :, :, :].numpy())

    def call(*arguments: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, ["spikes", *arguments, "--json"])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    made = call("write", "net.parspike", "--data", "data.npz", "-o", "t.npz", "--limit", "9", "--dt", "20")
    assert (made["images"], made["bytes"]) == (9, Path("t.npz").stat().st_size)
    shown = call("show", "t.npz", "--layer", "4", "--neurons", "0-2,7", "--sample", "3")
    spikes = parspike.read_spikes("t.npz")
    assert shown["raster"] == spikes.raster("4", 3, [0, 1, 2, 7]).splitlines()
    assert (shown["samples"], shown["dt"], shown["note"]["data"]) == (9, 20, "data.npz")
    assert [row["layer"] for row in shown["layers"]] == ["1", "4"]
    seen = CliRunner().invoke(app, ["spikes", "show", "t.npz", "--layer", "4"]).stdout
    assert f"{spikes.summary()[0].rate:.4f}" in seen
    assert spikes.raster("4") in seen
    for arguments, part in (
        (("write", "net.parspike", "--data", "data.npz", "-o", "t.npz"), "--force"),
        (("write", "net.parspike", "--data", "data.npz", "-o", "t.txt"), "ends in .npz"),
        (("write", "net.parspike", "--data", "data.npz", "-o", "t.aedat.txt", "--as", "bits"), "holds events"),
        (("show", "t.npz", "--neurons", "1"), "--layer"),
        (("show", "t.npz", "--layer", "4", "--neurons", "3-1"), "numbers and ranges"),
        (("show", "net.parspike"), "no file of spikes"),
        (("show", "none.npz"), "there is no file"),
    ):
        assert part in call(*arguments, code=1)["error"]["message"]


def test_the_command_line_knows_the_endings() -> None:
    from parspike.cli.spikes import ENDINGS as TOLD

    assert tuple(write.SINKS) == TOLD
    assert text.SUFFIX in TOLD
    assert np.dtype(EVENT) == layout.EVENT
    assert IntegrateFire(torch.tensor(2.0)).amplitudes().tolist() == [2.0]


def test_a_text_has_room_for_its_timestamps(snn: parspike.SNN, tmp_path: Path) -> None:
    path = parspike.write_spikes(snn, X[:2], tmp_path / "t.aedat.txt", dt=2**31 - 1)
    assert torch.equal(parspike.read_spikes(path).spikes["1"], snn.run(X[:2], record=True).spikes["1"])
    with pytest.raises(OptionError, match="31 years"):
        parspike.write_spikes(snn, [X.repeat(200, 1, 1, 1)] * 15, tmp_path / "u.aedat.txt", dt=2**31 - 1)
    assert [one.name for one in tmp_path.iterdir()] == ["t.aedat.txt"]


class Windows(nn.Module):
    """Neurons of windows, which share the dimension of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.reshape(-1, 4)).relu()).reshape(-1, 3, 3).mean(1)


def test_rows_of_windows_are_told_to_be_no_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 12)
    snn = parspike.convert(Windows().eval(), x, T=3, recipe="max")
    with pytest.raises(InputError, match=r"layer 'relu' has .* rows for a batch, since windows"):
        parspike.write_spikes(snn, x, tmp_path / "t.npz")
