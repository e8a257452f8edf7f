"""How far a student's outputs are from its teacher's: each measure by hand."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from parspike.calibrate.distance import apart, class_scores, judged, named, relative_error, values_of

INF = math.inf
STUDENT = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
TEACHER = torch.tensor([[1.5, 2.0, 0.0], [0.5, -2.0, 2.0]])


def test_the_squared_error_is_a_share_of_the_mean_square() -> None:
    wanted = ((0.25 + 0 + 0.25) + (0.25 + 1 + 1)) / (2.25 + 4 + 0 + 0.25 + 4 + 4)
    assert float(relative_error(STUDENT, TEACHER)) == pytest.approx(wanted)
    for unit in (1e-25, 1e25):  # whose squares float32 does not hold
        assert float(relative_error(STUDENT * unit, TEACHER * unit)) == pytest.approx(wanted, rel=1e-5)
    assert float(relative_error(torch.tensor(3.0), torch.tensor(2.0))) == pytest.approx(0.25)


def test_an_infinity_of_both_is_no_error_and_of_one_no_number() -> None:
    masked = TEACHER.clone()
    masked[0, 1] = -INF
    student = torch.where(masked.isinf(), masked, STUDENT)
    assert float(relative_error(student, masked)) == pytest.approx((0.5 + 2.25) / (2.25 + 0.25 + 4 + 4))
    assert bool(relative_error(STUDENT, masked).isnan())
    assert bool(relative_error(-student, masked).isnan())


def divergence(p: Tensor, q: Tensor) -> float:
    """Σ p log(p/q), sample by sample, of their softmax."""
    p, q = p.double().softmax(1), q.double().softmax(1)
    return sum(float(a * math.log(a / b)) for a, b in zip(p.flatten(), q.flatten(), strict=True) if a > 0) / len(p)


def test_scores_are_apart_by_the_divergence_of_their_softmax_too() -> None:
    error = float(relative_error(STUDENT, TEACHER))
    assert float(apart(STUDENT, TEACHER)) == pytest.approx(error + divergence(TEACHER, STUDENT), rel=1e-5)
    for place in (slice(0, 1), 0):  # one number a sample is no score
        column = STUDENT[:, place], TEACHER[:, place]
        assert float(apart(*column)) == pytest.approx(float(relative_error(*column)))


def test_a_class_that_a_mask_forbids_has_no_share() -> None:
    hidden = torch.tensor([[False, True, False], [False, False, False]])
    student, teacher = (scores.masked_fill(hidden, -INF) for scores in (STUDENT, TEACHER))
    wanted = float(relative_error(student, teacher)) + divergence(teacher, student)
    assert float(apart(student, teacher)) == pytest.approx(wanted, rel=1e-5)


def test_a_sample_is_judged_by_itself() -> None:
    shares = (STUDENT.softmax(1) - TEACHER.softmax(1)).abs().sum(1) / 2
    errors = torch.tensor([0.5, 2.25]) / 3 / (14.5 / 6)
    assert torch.allclose(judged(STUDENT, TEACHER), errors + shares)
    assert torch.allclose(judged(STUDENT[:, :1], TEACHER[:, :1]), torch.tensor([0.25, 0.25]) / 1.25)
    assert torch.allclose(judged(STUDENT[:, 0], TEACHER[:, 0]), torch.tensor([0.25, 0.25]) / 1.25)


Two = namedtuple("Two", ["logits", "states"])


@dataclass
class Answer:
    logits: Any
    more: Any = None


def test_the_tensors_of_an_output_have_the_last_name_on_their_way() -> None:
    a, b, c = torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2)
    output = {"x": [a, (b,)], "y": {"logits": c}, "n": 3, 7: Two(a, b), "d": Answer(c, [b])}
    assert [name for name, _ in named(output)] == ["x", "x", "logits", "logits", "states", "logits", "more"]
    assert [leaf is known for (_, leaf), known in zip(named(output), (a, b, c, a, b, c, b), strict=True)] == [True] * 7
    assert [name for name, _ in named([a, b])] == ["", ""]


def test_distinct_real_numbers_count_once() -> None:
    a, whole, pair = torch.zeros(2, 3), torch.arange(2), torch.tensor([[1 + 2j]])
    found = values_of((a, {"again": a, "whole": whole}, pair))
    assert found[0] is a
    assert found[1].tolist() == [[[1.0, 2.0]]]
    assert len(found) == 2


def test_which_output_may_hold_scores() -> None:
    a, b, c = torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2)
    assert class_scores(a) is a
    assert class_scores((a, torch.arange(2), torch.tensor(1.0))) is a
    assert class_scores({"logits": a, "states": b}) is a
    assert class_scores({"cls_logits": a, "states": b}) is a
    assert class_scores({"logits": a, "more": {"logits": b}}) is None
    assert class_scores((a, b)) is None
    assert class_scores(c) is None
    assert class_scores(torch.zeros(2, 1)) is None
    assert class_scores({"logits": torch.zeros(2, 1), "states": b}) is None
