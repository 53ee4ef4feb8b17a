import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ape_jax import presets
from ape_jax.config import (
    ALL_SETTINGS,
    HELP,
    PGConfig,
    PGHypers,
    PPOConfig,
    PPOHypers,
    RunConfig,
    read_settings,
    recipe,
    resolve,
)
from ape_jax.types import SettingError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1 and whole; got 0"),
        ({"envs_per_expert": -3}, "envs_per_expert must be at least 1 and whole; got -3"),
        ({"num_updates": 0}, "num_updates must be at least 1 and whole; got 0"),
        ({"num_experts": 2.5}, "num_experts must be at least 1 and whole; got 2.5"),
        ({"hidden_sizes": ()}, "hidden_sizes must be a tuple of widths"),
        ({"hidden_sizes": [8]}, "hidden_sizes must be a tuple of widths"),
        ({"hidden_sizes": (8, 0)}, "hidden_sizes must be a tuple of widths"),
        ({"head": "linear"}, "head must be one of tabular, mlp, conv .*; got 'linear'"),
        (
            {"observer": "oracle"},
            "observer must be one of uniform, posterior, learned .*; got 'oracle'",
        ),
    ],
)
def test_static_settings_are_checked_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        PGConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -0.1}, "beta must be >= 0 and finite; got -0.1"),
        ({"beta": float("nan")}, "beta must be >= 0 and finite; got nan"),
        ({"temperature": 0.0}, "temperature must be > 0 and finite; got 0.0"),
        ({"learning_rate": 0}, "learning_rate must be > 0 and finite; got 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be > 0"),
        ({"gamma": 1.5}, r"gamma must be in \(0, 1\]; got 1.5"),
        ({"lr_end_fraction": 2.0}, "lr_end_fraction must be between 0 and 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0"),
        ({"ent_coef": -1.0}, "ent_coef must be >= 0"),
        ({"classifier_learning_rate": 0.0}, "classifier_learning_rate must be > 0 and finite"),
        ({"min_return": float("nan")}, "min_return must be a finite number; got nan"),
        ({"min_return": float("-inf")}, "min_return must be a finite number; got -inf"),
        ({"multiplier_rate": 0.0}, "multiplier_rate must be > 0 and finite; got 0.0"),
        ({"max_multiplier": 0.5}, "max_multiplier must be >= 1 and finite; got 0.5"),
    ],
)
def test_numbers_are_checked_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        PGHypers(**settings)


def test_static_settings_hash_and_numbers_are_a_pytree_of_scalars():
    assert hash(PGConfig()) == hash(PGConfig())
    assert hash(PPOConfig()) == hash(PPOConfig())
    for hypers, left_out in ((PGHypers, 1), (PPOHypers, 3)):
        leaves = jax.tree.leaves(hypers())
        assert len(leaves) == len(dataclasses.fields(hypers)) - left_out
        assert len(jax.tree.leaves(hypers(min_return=-12.0))) == len(leaves) + 1
    swept = jax.vmap(lambda hypers: hypers.beta * 2)(
        jax.tree.map(lambda *x: jnp.stack(x), PGHypers(beta=0.1), PGHypers(beta=0.2))
    )
    assert swept.tolist() == pytest.approx([0.2, 0.4])


def test_pg_has_no_settings_of_ppo():
    names = {field.name for kind in (PGConfig, PGHypers) for field in dataclasses.fields(kind)}
    assert names.isdisjoint({"rollout_length", "num_epochs", "clip_eps", "constraint", "std"})
    assert "critic" not in {field.name for field in dataclasses.fields(PPOConfig)}


def test_hypers_of_the_other_algorithm_are_refused():
    with pytest.raises(SettingError, match="hypers must be PPOHypers with algorithm=ppo"):
        RunConfig(PPOConfig(), PGHypers())


def test_configuration_survives_yaml(tmp_path):
    train, hypers = recipe("mlp")
    config = RunConfig(
        dataclasses.replace(train, hidden_sizes=(8, 4)), hypers.replace(beta=0.11), 3, 7
    )
    config.save(tmp_path / "config.yaml")
    assert RunConfig.load(tmp_path / "config.yaml") == config


def test_yaml_starts_from_the_recipe_of_its_head(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("head: mlp\nbeta: 0.5\n")
    loaded = RunConfig.load(path)
    train, hypers = recipe("mlp")
    assert loaded == RunConfig(train, hypers.replace(beta=0.5))
    path.write_text("")
    assert RunConfig.load(path) == RunConfig(*recipe("tabular"))


@pytest.mark.parametrize("head", ["tabular", "mlp"])
def test_constrained_form_has_a_recipe_of_its_own(head):
    (train, hypers), (plain, penalised) = recipe(head, -12.0), recipe(head)
    assert train.num_updates > plain.num_updates
    assert hypers.min_return == -12.0
    assert hypers.lr_end_fraction <= 0.1
    assert penalised.min_return is None
    assert hypers.learning_rate == penalised.learning_rate


@pytest.mark.parametrize("head", ["tabular", "mlp"])
def test_yaml_starts_from_the_constrained_recipe_where_it_sets_min_return(head, tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(f"head: {head}\nmin_return: -11\nbeta: 0.5\n")
    train, hypers = recipe(head, -11.0)
    assert RunConfig.load(path) == RunConfig(train, hypers.replace(beta=0.5))
    RunConfig(train, hypers).save(path)
    assert RunConfig.load(path) == RunConfig(train, hypers)
    path.write_text(f"head: {head}\nmin_return: null\n")
    assert RunConfig.load(path) == RunConfig(*recipe(head))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bta: 1", "unknown setting 'bta'; did you mean beta?"),
        ("zzzzzz: 1", "unknown setting 'zzzzzz'; known: algorithm, env"),
        ("num_experts: two", "num_experts must be a whole number; got 'two'"),
        ("num_experts: 2.5", "num_experts must be a whole number; got 2.5"),
        ("beta: null", "beta must be a number; got None"),
        ("beta: high", "beta must be a number; got 'high'"),
        ("head: linear", "head must be one of tabular, mlp, conv, gaussian; got 'linear'"),
        ("hidden_sizes: 64", "hidden_sizes must be a list of widths; got 64"),
        ("hidden_sizes: [wide]", "hidden_sizes must be a list of widths; got ['wide']"),
        ("beta: -1", "beta must be >= 0"),
        ("min_return: high", "min_return must be a number or null; got 'high'"),
        ("min_return: .nan", "min_return must be a finite number; got nan"),
        ("seeds: 0", "seeds must be at least 1; got 0"),
        ("first_seed: -1", "first_seed must be at least 0"),
        ("seeds: 3000000000", "first_seed + seeds at most 2^31"),
        ("beta: ${foo}", "beta must be a plain value; got '${foo}'"),
        ("env: ???", "env must be a plain value; got '???'"),
        ("- beta", "config must map names to values"),
        ("beta: [", "config must be YAML"),
        ("env: ${foo", "config must be YAML"),
        ("head: [mlp]", "head must be one of tabular, mlp, conv, gaussian; got ['mlp']"),
    ],
)
def test_yaml_mistakes_get_one_message(tmp_path, text, message):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(SettingError) as error:
        RunConfig.load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_yaml_that_cannot_be_read_gets_one_message(tmp_path, make):
    path = tmp_path / "absent.yaml"
    make(path)
    with pytest.raises(SettingError, match="config must be a readable file"):
        RunConfig.load(path)


def test_later_layers_override_and_choose_the_recipe():
    layers = ({"head": "tabular", "beta": 0.1}, {"head": "mlp", "min_return": -12})
    train, hypers = recipe("mlp", -12.0)
    assert resolve(*layers) == RunConfig(train, hypers.replace(beta=0.1))
    assert resolve() == RunConfig(*recipe())
    assert resolve({"algorithm": "ppo"}) == RunConfig(*recipe("mlp", algorithm="ppo"))


@pytest.mark.parametrize("name", presets.names())
def test_layers_of_presets_leave_nothing_to_a_recipe(name):
    layer = presets.config(name).to_flat()
    assert resolve(layer).to_flat() == layer
    others = {"beta": 0.25, "seeds": 3, "hidden_sizes": (5,)}
    changed = layer | others | {"hidden_sizes": [5]}
    assert resolve(layer, others).to_flat() == changed
    assert RunConfig.from_flat(changed).to_flat() == changed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_eps": 0.3}, "clip_eps is a setting of algorithm=ppo; got algorithm='pg'"),
        ({"constraint": "gate"}, "constraint is a setting of algorithm=ppo"),
        ({"algorithm": "ppo", "critic": "shared"}, "critic is a setting of algorithm=pg"),
        ({"head": "gaussian"}, "head must be one of tabular, mlp, conv with algorithm=pg"),
        ({"observer": "none"}, "observer must be one of .* with algorithm=pg; got 'none'"),
        ({"algorithm": "ppo", "constraint": "gate"}, "constraint='gate' needs min_return"),
        (
            {"algorithm": "ppo", "observer": "none", "min_return": 1.0},
            "min_return must be None with observer='none'.*; got 1.0",
        ),
        ({"algorithm": "a2c"}, "algorithm must be one of pg, ppo; got 'a2c'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        resolve(settings)


def test_messages_name_the_file_and_every_setting_has_a_type_and_a_meaning(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("beta: high")
    with pytest.raises(SettingError, match=r"some\.yaml: beta must be a number"):
        read_settings(path)
    path.write_text("algorithm: ppo")
    assert read_settings(path) == {"algorithm": "ppo"}
    with pytest.raises(SettingError, match=r"must hold every setting; .* lacks env"):
        RunConfig.load(path, complete=True)
    assert ALL_SETTINGS.keys() == HELP.keys()
    assert ALL_SETTINGS.keys() == {
        *presets.config("paper").to_flat(),
        *presets.config("catch").to_flat(),
    }
    assert all(len(text) > 10 for text in HELP.values())
