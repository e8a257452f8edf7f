"""Runs that a GPU plays back (engines/replay.py), with a recording that the test makes, for here is no GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parspike.engines import replay


class Recorder:
    """A function that is recorded: what stands between `torch.cuda.graph` is remembered, and `replay` computes it again
    from the inputs of then into the outputs of then."""

    def __init__(self, wrong: float = 0.0) -> None:
        self.launched, self.played, self.wrong = 0, 0, wrong
        self.recording: dict[str, Any] = {}
        self.open = False

    def run(self, env: dict[str, Any]) -> dict[str, Any]:
        self.launched += 1
        made = {"y": env["x"] * 2 + 1, "levels": 3}
        if self.open:
            self.recording = {"env": env, "made": made}
        return made

    def replay(self) -> None:
        self.played += 1
        self.recording["made"]["y"].copy_(self.recording["env"]["x"] * 2 + 1 + self.wrong)

    @contextlib.contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        self.open = True
        yield
        self.open = False


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(replay, "_on_one_gpu", lambda tensors: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=made.replay))
    monkeypatch.setattr(torch.cuda, "graph", made.graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return made


def test_the_second_run_of_a_shape_is_recorded_and_later_ones_are_played_back(recorder: Recorder) -> None:
    """Would catch outputs of an earlier run, and an answer that the next run writes over."""
    plays, inputs = replay.Replay(), [torch.full((2, 3), float(n)) for n in range(5)]
    answers = [plays(recorder.run, {"x": x})["y"] for x in inputs]
    assert all(torch.equal(y, x * 2 + 1) for x, y in zip(inputs, answers, strict=True))
    assert recorder.launched == 3  # the first run, the recorded one, and the one that it is compared with
    assert recorder.played == 5  # once to compare, and for each run from the second on
    assert torch.equal(plays(recorder.run, {"x": torch.ones(1, 3)})["y"], torch.full((1, 3), 3.0))  # another shape
    assert recorder.launched == 4


def test_a_recording_that_gives_something_else_is_not_used(recorder: Recorder) -> None:
    """Would catch a device whose playback differs, which nobody would be told of."""
    recorder.wrong = 1.0
    plays = replay.Replay()
    for n in range(5):
        x = torch.full((2, 3), float(n))
        assert torch.equal(plays(recorder.run, {"x": x})["y"], x * 2 + 1)
    assert recorder.played == 1


def test_a_run_that_cannot_be_recorded_is_launched(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an operator that a recording forbids ending the run."""

    def refused(graph: Any, **options: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    plays = replay.Replay()
    for _ in range(4):
        assert torch.equal(plays(recorder.run, {"x": torch.ones(2)})["y"], torch.full((2,), 3.0))
    assert recorder.launched == 4
