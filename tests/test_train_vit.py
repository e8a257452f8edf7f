"""AdamW, and the vision transformer that it trains."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training import CPU, TEST, TRAIN, network, recipe

import parspike
from parspike.errors import OptionError
from parspike.train import TrainingRecipe, fit
from parspike.train.networks import ViT

pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")


class KilledError(Exception):
    pass


def killed_after(steps):
    def progress(what, done, total):
        if done == steps:
            raise KilledError

    return progress


def plain(**options):
    """One step, of which nothing is drawn by chance but the order of the images."""
    step = {"name": "adamw", "batch_size": len(TRAIN), "epochs": 1, **options}
    parts = {"activation": {"method": "relu"}, "data": {"classes": 2}, "optimiser": step, "precision": "64-true"}
    return TrainingRecipe.from_json({"network": "digits", **parts})


def test_a_step_of_adamw_by_hand(tmp_path):
    made = plain(lr=0.02, weight_decay=0.5, momentum=0.8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = nn.functional.cross_entropy(model(TRAIN.images.double() / 255), TRAIN.labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    fit(made, model, TRAIN, TEST, tmp_path, devices=CPU)
    # Loshchilov and Hutter, Algorithm 2: in the first step the corrected moments are g and g².
    for (name, start), g in zip(before.items(), gradients, strict=True):
        wanted = start - 0.02 * (g / (g.abs() + 1e-8) + 0.5 * start)
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("not_compiled")
def test_a_killed_run_of_adamw_ends_with_the_same_weights(tmp_path):
    made = recipe(optimiser__name="adamw", optimiser__lr=0.01, optimiser__epochs=2)
    whole = fit(made, network(made), TRAIN, TEST, tmp_path / "whole", devices=CPU)
    with pytest.raises(KilledError):
        fit(made, network(made), TRAIN, TEST, tmp_path / "killed", devices=CPU, save_every=0, progress=killed_after(8))
    resumed = fit(made, network(made), TRAIN, TEST, tmp_path / "killed", devices=CPU, resume=True)
    one, other = load_file(whole.weights), load_file(resumed.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_optimisers_are_checked():
    with pytest.raises(OptionError, match=r"optimiser\.name = 'adam': choose one of sgd, adamw"):
        recipe(optimiser__name="adam")
    with pytest.raises(OptionError, match="must be below 1 for adamw"):
        recipe(optimiser__name="adamw", optimiser__momentum=1.0)


def test_the_transformer_becomes_spiking_neurons():
    torch.manual_seed(0)
    model, x = ViT(10, width=12, depth=2, heads=3, hidden=8, stem=4).eval(), torch.randn(3, 3, 32, 32)
    assert model(x).shape == (3, 10)
    plan = parspike.plan(model, x, free_sizes=False)
    assert [row.operator for row in plan.rows if row.role == "neuron"] == ["relu", *["rising", "falling"] * 2]
    assert sum(row.operator == "scaled_dot_product_attention" for row in plan.rows) == 2
    snn = parspike.convert(plan, x, T=512, recipe="max")
    with torch.no_grad():
        assert float((snn(x) - model(x)).norm() / model(x).norm()) < 0.01
