"""Recipes: files a user reads and changes, refused with the place when they are wrong."""

from __future__ import annotations

import pytest

from parspike.errors import FileError, OptionError
from parspike.train import TrainingRecipe, load_recipe, recipe_names
from parspike.train.networks import NETWORKS


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_whole(name):
    recipe = load_recipe(name)
    assert recipe.network in NETWORKS
    assert recipe.about
    assert TrainingRecipe.from_json(recipe.to_json()) == recipe


def test_the_papers_settings():
    recipe = load_recipe("cifar10-resnet20")
    optimiser, augment = recipe.optimiser, recipe.augment
    assert (optimiser.momentum, optimiser.nesterov, optimiser.weight_decay, optimiser.epochs) == (0.9, True, 5e-4, 300)
    assert (augment.policy, augment.cutout, recipe.activation.levels) == ("cifar10", 16, 4)
    imagenet = load_recipe("imagenet-resnet34")
    assert (imagenet.optimiser.weight_decay, imagenet.optimiser.epochs, imagenet.activation.levels) == (1e-4, 120, 8)
    assert imagenet.optimiser.label_smoothing == 0.1
    assert load_recipe("imagenet-vgg16").activation.levels == 16
    assert load_recipe("cifar100-resnet20").activation.levels == 8


def test_a_users_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('network = "digits"\n[optimiser]\nepochs = 3\nlr = 1\n[activation]\nv_threshold = "99.9%"\n')
    recipe = load_recipe(path)
    assert recipe.optimiser.lr == 1.0
    assert recipe.activation.v_threshold == "99.9%"
    assert recipe.differences(recipe.replace({"seed": 2})) == ["seed: 0 and 2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimiser]\nepochs = 3", "network is missing"),
        ('network = "digits"\n[optimizer]\nepochs = 3', "unknown optimizer; known are .*optimiser"),
        ('network = "digits"\n[optimiser]\nepoch = 3', r"\[optimiser\]: unknown epoch; known are epochs"),
        ('network = "digits"\nepochs = 3', r"unknown epochs; known are .* \(it stands in optimiser\.epochs\)"),
        ('network = "digits"\n[optimiser]\nepochs = "3"', "epochs = '3': expected a whole number"),
        ('network = "digits"\n[optimiser]\nepochs = true', "epochs = True: expected a whole number"),
        ('network = "digits"\n[optimiser]\nepochs = 0', "epochs = 0: it must be at least 1"),
        ('network = "digits"\n[optimiser]\nlr = nan', "lr = nan: it must be above 0"),
        ('network = "digits"\n[optimiser]\nmomentum = 0', "nesterov needs a momentum"),
        ('network = "digits"\n[optimiser]\naccumulate = 3', "not divisible by accumulate"),
        ('network = "digits"\n[activation]\nmethod = "ann"', "choose one of qcfs"),
        ('network = "digits"\n[optimiser]\nmomentum = 2.0', "momentum = 2.0: it must lie between 0 and 1"),
        ('network = "digits"\n[optimiser]\nlabel_smoothing = 3', "smoothing = 3.0: it must lie between 0 and 1"),
        ('network = "digits"\n[data]\nmean = [123.7]', "data.mean = 123.7: it must lie between -1 and 1"),
        ('network = "digits"\n[data]\nmean = [nan]', "data.mean = nan: it must lie between -1 and 1"),
        ('network = "digits"\n[data]\nstd = [0.2, 0]', "data.std = 0.0: it must be above 0"),
        ('network = "digits"\n[data]\nstd = ["0.2"]', "data.mean and data.std are numbers, got '0.2'"),
        ('network = "digits"\n[data]\nsize = 0', "data.size = 0: it must be at least 1"),
        ('network = "digits"\n[data]\ncrop = -1', "data.crop = -1: it must be at least 1"),
        ('network = "digits"\n[augment]\npolicy = "best"', "cifar10, imagenet"),
        ('network = "digits"\nprecision = "8"', "32-true"),
        ('network = "digits"\nactivation = 3', "expected a table"),
        ("network = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=message):
        load_recipe(path)


def test_no_such_recipe(tmp_path):
    with pytest.raises(OptionError, match=r"choose .*cifar10-resnet20"):
        load_recipe("cifar10")
    with pytest.raises(OptionError, match=r"'digts' \(did you mean 'digits'\?\): choose"):
        load_recipe("digts")
    with pytest.raises(FileError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(OptionError, match=r"no table \[optimizer\] in a recipe \(did you mean 'optimiser'"):
        load_recipe("digits").replace({"optimizer.epochs": 2})
