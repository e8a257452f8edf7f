"""Events as lines of text, in the manner of the AEDAT readers' exports: comments first, then a line for each event.

#!parspike-spikes 1
# {"format":"parspike-spikes", …}          the header, one line of JSON
# timestamp sample step layer neuron [value]
2000 0 2 0 17
# end {"events":1,"batches":[64]}          so that a text that was cut short is told
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from parspike.errors import FileError, OptionError
from parspike.file.bytes import parse
from parspike.spikes.layout import EVENT, VALUED, File, Header, Sink, Trains, check_table, events_of, table_names

__all__ = ["SUFFIX", "TextFile", "TextSink"]

SUFFIX = ".aedat.txt"
FIRST = b"#!parspike-spikes 1\n"
END = b"# end "
LINES = 1 << 16
"""Events that are written or read at a time."""
LATEST = 10**15
"""Microseconds: timestamps have at most 15 digits."""
LONGEST = 200
"""Bytes of a line of an event, which has at most six numbers."""
COLUMNS = "# timestamp sample step layer neuron"
PLAIN, WITH_VALUE = (re.compile(rb"(?:[0-9]{1,15}" + rb" -?[0-9]{1,10}" * n + rb"\n)*") for n in (4, 5))


class TextSink(Sink):
    """Header first, so that a reader knows the layers before the first event; counts at the end."""

    def __init__(self, path: Path, header: Header, tables: Mapping[str, np.ndarray]) -> None:
        super().__init__(path, header, tables)
        self.stream: BinaryIO = path.open("wb")
        self.written = 0
        about = header.to_json()
        del about["batches"]
        about["tables"] = {name: {"shape": list(t.shape), "values": t.ravel().tolist()} for name, t in tables.items()}
        text = json.dumps(about, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        self.stream.write(FIRST + f"# {text}\n{_columns(header)}\n".encode())

    def batch(self, number: int, trains: Trains, start: int) -> None:
        events = events_of(trains, start, self.header.event)
        if len(events) and (int(events[-1]["sample"]) + 1) * self.header.T * self.header.dt >= LATEST:
            raise OptionError(
                f"samples from {start} on would come after 31 years of {self.header.dt} µs a step: take less"
            )
        names = events.dtype.names or ()
        line = " ".join(["%d"] * (1 + len(names))) + "\n"
        for first in range(0, len(events), LINES):
            part = events[first : first + LINES]
            rows = zip(_times(part, self.header).tolist(), *(part[name].tolist() for name in names), strict=True)
            self.stream.write("".join(line % row for row in rows).encode())
        self.written += len(events)

    def end(self, header: Header) -> None:
        text = json.dumps({"events": self.written, "batches": list(header.batches)}, separators=(",", ":"))
        self.stream.write(END + f"{text}\n".encode())

    def close(self) -> None:
        self.stream.close()


class TextFile(File):
    """A text of events, read from its first line to its last."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        with path.open("rb") as stream:
            if stream.read(len(FIRST)) != FIRST:
                raise FileError("this is no file of spikes: its first line is not '#!parspike-spikes 1'")
            about = _json(stream.readline(), b"# ")
            columns = stream.readline(LONGEST)
            self.begin = stream.tell()
            end = _last_line(stream, self.size)
        if not isinstance(about, dict) or "tables" not in about or "batches" in about:
            raise FileError("its second line is no header")
        if not isinstance(end, dict) or set(end) != {"events", "batches"}:
            raise FileError("its last line is no '# end': it is truncated, write or copy it again")
        tables = about.pop("tables")
        self.header = Header.from_json({**about, "batches": end["batches"]})
        if self.header.form != "events":
            raise FileError("a text holds events")
        if columns != f"{_columns(self.header)}\n".encode():
            raise FileError("its third line does not name the columns")
        self.stated = end["events"]
        self.tables = self._tables(tables)

    def _tables(self, given: Any) -> dict[str, np.ndarray]:
        if not isinstance(given, dict):
            raise FileError("its tables are no object")
        found: dict[str, np.ndarray] = {}
        for number, layer in enumerate(self.header.layers):
            for what, name in table_names(number).items():
                if (one := given.get(name)) is None:
                    continue
                shape, values = (one.get(key) for key in ("shape", "values")) if isinstance(one, dict) else (None, None)
                if not isinstance(values, list) or not isinstance(shape, list) or not all(
                    isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
                ) or not all(isinstance(dim, int) and dim >= 0 for dim in shape):  # fmt: skip
                    raise FileError(f"its table {name} is no array of numbers")
                table = np.array(values, np.float64)
                try:
                    found[name] = check_table(layer, what, table.reshape(shape))
                except ValueError as error:
                    raise FileError(f"its table {name} has {len(values)} values for the shape {shape}") from error
        if set(given) - set(found):
            raise FileError(f"its table '{str(next(iter(set(given) - set(found))))[:40]}' belongs to no layer")
        return found

    def close(self) -> None:
        """Nothing stays open."""

    def batches(self, only: int | None = None) -> Iterator[np.ndarray]:
        parts: list[np.ndarray] = [np.empty(0, self.header.event)]
        stops, now, total = np.cumsum(self.header.batches), 0, 0
        for block in self._blocks():
            total += len(block)
            while now < len(stops) - 1 and int(block["sample"][-1]) >= stops[now]:
                cut = int(np.argmax(block["sample"] >= stops[now]))
                yield np.concatenate([*parts, block[:cut]])
                parts, block, now = [block[:0]], block[cut:], now + 1
            parts.append(block)
        if total != self.stated:
            raise FileError(f"it has {total} events and its last line says {self.stated}: write or copy it again")
        for _ in stops[now:]:
            yield np.concatenate(parts)
            parts = parts[:1]

    def _blocks(self) -> Iterator[np.ndarray]:
        dtype = self.header.event
        names, pattern = dtype.names or (), PLAIN if dtype == EVENT else WITH_VALUE
        line = 4
        with self.path.open("rb") as stream:
            stream.seek(self.begin)
            while True:
                lines = stream.readlines(LINES * 24)
                if lines and lines[-1].startswith(END):
                    lines, done = lines[:-1], True
                else:
                    done = not lines
                text = b"".join(lines)
                if pattern.fullmatch(text) is None:
                    bad = next(i for i, one in enumerate(lines) if pattern.fullmatch(one) is None)
                    raise FileError(f"line {line + bad} is no event: {lines[bad][:60]!r}")
                numbers = np.array(text.split(), dtype="S15").astype(np.int64).reshape(-1, 1 + len(names))
                line += len(lines)
                block = np.empty(len(numbers), dtype)
                for place, name in enumerate(names, 1):
                    block[name] = numbers[:, place]
                    if (block[name].astype(np.int64) != numbers[:, place]).any():
                        raise FileError(f"the {name} of an event is too large, or below 0")
                time = _times(block, self.header)
                if (time != numbers[:, 0]).any():
                    at = int(np.argmax(time != numbers[:, 0]))
                    raise FileError(f"the timestamp {numbers[at, 0]} is not that of its sample and step, {time[at]}")
                if len(block):
                    yield block
                if done:
                    return


def _columns(header: Header) -> str:
    return COLUMNS + (" value" if header.event == VALUED else "")


def _times(events: np.ndarray, header: Header) -> np.ndarray:
    """Microseconds: samples are shown one after the other."""
    return (events["sample"].astype(np.int64) * header.T + events["step"]) * header.dt


def _json(line: bytes, start: bytes) -> Any:
    if not line.startswith(start) or not line.endswith(b"\n"):
        return None
    try:
        return parse(line[len(start) :].decode())
    except (ValueError, RecursionError):
        return None


def _last_line(stream: BinaryIO, size: int) -> Any:
    """The JSON of the last line; None where it is no '# end'."""
    step = 4096
    while True:
        stream.seek(max(0, size - step))
        tail = stream.read()
        place = tail.rfind(b"\n" + END)
        if place >= 0:
            return _json(tail[place + 1 :], END)
        # A line of batches is as long as the header's of all samples; anything else in between ends the search.
        if step >= size or tail.count(b"\n") > 1:
            return None
        step *= 8
