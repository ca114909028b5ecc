"""Recipes are data, and wrong data is named."""

from __future__ import annotations

import pytest

from digits_export import models, recipe


@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_loads_under_its_own_name(name):
    """The name inside a recipe's file is the file's name, so that what a package says made it can be found."""
    assert recipe.load(name).name == name


@pytest.mark.parametrize("name", ["ann", "ann-dropout", "ann-flatten", "ann-script", "digits-mlp-mnist", "digits-mlp"])
def test_these_recipes_train_exactly_784_128_64_10(name):
    """The seeds' network and the shipped MLP have the same 109,386 parameters."""
    assert models.build(recipe.load(name).network).count_params() == 109_386


@pytest.mark.parametrize("name", [name for name in recipe.names() if recipe.load(name).start])
def test_a_recipe_starts_from_one_of_the_same_network(name):
    """The recipe that it starts from ships too, and trains the same network."""
    chosen = recipe.load(name)
    assert recipe.load(chosen.start).network == chosen.network


def test_the_cnn_fits_its_size():
    """The shipped CNN stays below the 375,000 floats that make 1.5 MB."""
    assert models.build(recipe.load("digits-cnn").network).count_params() < 375_000


BASE = {"name": "x", "summary": "x", "network": {"layers": [{"kind": "dense", "units": 8}]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour is unknown, allowed: name, summary"),
        ({"seed": "7"}, "seed: the value is '7', allowed: a value of type int"),
        ({"seed": -7}, "seed is -7, allowed: 0 or more"),
        ({"start": "x"}, "start is 'x', allowed: another recipe"),
        ({"start": "ann", "kept": 1}, r"kept is 1.0, allowed: 0 <= kept < 1"),
        ({"kept": 0.5}, "kept is 0.5, allowed: 0 where there is no start"),
        ({"foreign": {"drawn": -1}}, "drawn is -1, allowed: 0 or more"),
        ({"foreign": {"damaged": 1.5}}, "damaged is 1.5, allowed: 0 to 1"),
        ({"seed": True}, "seed: the value is True, allowed: a value of type int"),
        ({"first_layer_bits": 8}, "first_layer_bits is 8, allowed: 0 or 7"),
        ({"fit": {"epochs": "x", "batch_size": 0.5}}, r"fit.epochs: .*'x'.*; fit.batch_size: .*0.5"),
        ({"fit": {"epochs": 0}}, "epochs is 0, allowed: 1 or more"),
        ({"fit": {"epochs": 2, "warmup_epochs": 2}}, r"warmup_epochs is 2.0, allowed: 0 <= warmup_epochs < epochs"),
        ({"fit": 3}, "fit: allowed: a table"),
        ({"network": {"layers": [{"kind": "lstm"}]}}, "kind is 'lstm', allowed: dense, conv, dropout, flatten"),
        ({"network": {"layers": [{"kind": "dense"}]}}, "dense.units is 0, allowed: 1 or more"),
        ({"network": {"layers": [], "input_shape": [27, 27]}}, r"input_shape is \[27, 27\]"),
        ({"network": {"layers": 3}}, "network.layers: allowed: a list"),
        ({"network": {}}, "network.layers: is missing"),
        ({"fit": {"integer_labels": True}, "foreign": {"scribbled": 1}}, "integer_labels is True"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(change, message):
    """Whoever writes a recipe learns which field is wrong, what it says and what it may say."""
    with pytest.raises(recipe.RecipeError, match=message):
        recipe.parse(BASE | change)


def test_a_recipe_of_ones_own_is_read_from_its_path(tmp_path):
    """Any TOML file is a recipe; faults in it carry its name."""
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nsummary = "x"\n[network]\nlayers = [{ kind = "dense", units = 8 }]\n')
    assert recipe.load(str(path)).network.layers[0].units == 8
    path.write_text("name = ")
    with pytest.raises(recipe.RecipeError, match=r"mine\.toml"):
        recipe.load(str(path))
    path.write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(recipe.RecipeError, match=r"mine\.toml: 'utf-8' codec can't decode"):
        recipe.load(str(path))


def test_an_unknown_name_lists_the_known_ones():
    """A mistyped recipe is answered with those there are."""
    with pytest.raises(recipe.RecipeError, match="'digit-mlp', allowed: ann, ann-dropout"):
        recipe.load("digit-mlp")
