"""The PyTorch versions that the benchmark compares with compute what ape_jax computes.

Tolerance: a gradient may differ by 2e-5 of its largest entry, a loss by 1e-5 of itself. Both sides
add float32 numbers in another order.
"""

import contextlib
import dataclasses
import functools
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax import algorithms
from ape_jax.algorithms import pg, pg_loss
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, TrainConfig
from ape_jax.core import mixture
from ape_jax.envs import GridWorld
from ape_jax.envs.gridworld import EnvState
from ape_jax.networks import EnsembleParams

REASON = 'not installed: pip install ".[test,bench]"'
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")

from benchmarks.torch_ape import compiled, eager, gridworld  # noqa: E402
from benchmarks.torch_ape.networks import Params  # noqa: E402

HYPERS = PGHypers(
    beta=0.4,
    gamma=0.97,
    ent_coef=0.3,
    learning_rate=0.02,
    critic_learning_rate=0.3,
    lr_end_fraction=0.5,
)
CLIPPING, NOT_CLIPPING = 0.5, 1e6
NUM_EXPERTS, NUM_ENVS = 3, 16
VERSIONS = {"eager": eager, "compiled": compiled}
if shutil.which("g++") is None and shutil.which("clang++") is None:
    del VERSIONS["compiled"]
    warnings.warn("torch.compile needs a C++ compiler; its version is not tested", stacklevel=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors are small, and threads get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass
class Case:
    """Parameters and episodes of ape_jax."""

    config: TrainConfig
    networks: pg.Networks
    params: EnsembleParams
    experts: pg.Transition
    observer: pg.Transition


@pytest.fixture(scope="module", params=["tabular", "mlp"])
def case(request):
    """Experts that mostly walk to the goal, each at its own pace; the observer follows later."""
    sizes = (16, 8)
    config = PGConfig(
        head=request.param, hidden_sizes=sizes, num_experts=NUM_EXPERTS, envs_per_expert=NUM_ENVS
    )
    task = make_task(dataclasses.replace(config, num_updates=4))
    params = task.networks.init(jax.random.key(0))
    # Critics start at zero outputs, and parts of the loss would vanish.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.5 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, [x + y for x, y in zip(leaves, noise, strict=True)])

    @jax.jit
    def collect(params, key_experts, key_observer):
        keys = key_experts, key_observer
        return pg.collect(task, params, uniform_log_weights, HYPERS, keys)

    episodes = collect(params, *jax.random.split(jax.random.key(2)))
    return Case(task.config, task.networks, params, *episodes)


def uniform_log_weights(_):
    return mixture.uniform_log_weights(NUM_EXPERTS)


def to_torch(params: EnsembleParams) -> Params:
    """The same weights, layer by layer, the observer's critic behind the experts'."""

    def layers(tree):
        if "table" in tree["params"]:
            return [tree["params"]["table"]]
        embedding, *kernels = (tree["params"][name] for name in sorted(tree["params"], key=_depth))
        return [embedding["embedding"], *(kernel["kernel"] for kernel in kernels)]

    pairs = zip(layers(params.expert_critics), layers(params.observer_critic), strict=True)
    critics = [np.concatenate([experts, observer[None]]) for experts, observer in pairs]
    return Params(
        heads=[torch.tensor(np.asarray(x)) for x in layers(params.heads)],
        critics=[torch.tensor(np.asarray(x)) for x in critics],
    )


def _depth(name):
    return -1 if name.startswith("Embed") else int(name.split("_")[1])


def episodes_in_torch(episodes) -> eager.Episodes:
    """From time first to time last."""
    columns = (episodes.observation, episodes.action, episodes.reward, episodes.mask)
    moved = (np.moveaxis(np.asarray(x), 0, -1) for x in columns)
    cells, actions, rewards, mask = (torch.tensor(x) for x in moved)
    return eager.Episodes(cells.long(), actions.long(), rewards, mask)


def keys_in_torch(case) -> "torch.Tensor":
    """Episodes as ``compiled`` records them: keys [T, N], experts first, and nowhere at the end."""
    experts, observer = (episodes_in_torch(episodes) for episodes in (case.experts, case.observer))
    cells = torch.cat([experts.cells.flatten(0, 1), observer.cells])
    actions = torch.cat([experts.actions.flatten(0, 1), observer.actions])
    mask = torch.cat([experts.mask.flatten(0, 1), observer.mask])
    sizes = torch.tensor([NUM_ENVS] * NUM_EXPERTS + [NUM_EXPERTS * NUM_ENVS])
    policies = torch.arange(NUM_EXPERTS + 1).repeat_interleave(sizes)
    places = policies[:, None] * gridworld.NUM_CELLS + cells
    places = torch.where(mask, places, (NUM_EXPERTS + 1) * gridworld.NUM_CELLS)
    return (places * gridworld.NUM_ACTIONS + actions).T.contiguous()


def trainer_at(version, case, hypers):
    """A trainer with the case's parameters."""
    trainer = VERSIONS[version].Trainer(case.config, hypers)
    for own, given in zip(weights(trainer.params), weights(to_torch(case.params)), strict=True):
        own.data.copy_(given)
    return trainer


def weights(params):
    return [*params.heads, *params.critics]


@contextlib.contextmanager
def not_compiled():
    """Compiling takes longer than what a test computes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("thresholds", "act", "summarize"):
            patch.setattr(compiled, f"compiled_{name}", getattr(compiled, name))
        yield


def losses_of(version, trainer, case):
    if version == "compiled":
        keys = keys_in_torch(case)
        with not_compiled():
            statistics = trainer.summarize([keys[:60], keys[60:]])
        return compiled.losses(trainer.params, statistics, case.config, trainer.hypers)
    episodes = episodes_in_torch(case.experts), episodes_in_torch(case.observer)
    return eager.losses(trainer.params, *episodes, trainer.hypers, case.config.activation)


@functools.partial(jax.jit, static_argnums=1)
def loss_and_gradient(params, networks, experts, observer, hypers):
    return jax.value_and_grad(pg_loss.loss, has_aux=True)(
        params, networks, uniform_log_weights, experts, observer, hypers
    )


def loss_of_ape_jax(case, hypers):
    return loss_and_gradient(case.params, case.networks, case.experts, case.observer, hypers)


def assert_close(ours, theirs, share, what):
    theirs = theirs.detach().numpy()
    limit = share * np.abs(ours).max()
    worst = np.abs(ours - theirs).max()
    assert worst <= limit, f"{what}: {worst:.2e} apart, allowed {limit:.2e}"


def test_the_case_has_episodes_of_different_lengths(case):
    lengths = np.asarray(case.experts.mask.sum(0)).ravel()
    others = np.asarray(case.observer.mask.sum(0))
    for values in (lengths, others):
        assert values.min() < 100
        assert values.max() == 100
    assert lengths.sum() != others.sum()


@pytest.mark.parametrize("version", VERSIONS)
def test_losses_agree(version, case):
    (total, (expert, observer)), _ = loss_of_ape_jax(case, HYPERS)
    parts = losses_of(version, trainer_at(version, case, HYPERS), case)
    expected = [expert.policy, expert.value, expert.entropy, observer.policy, observer.value]
    for name, ours, theirs in zip(parts._fields, expected, parts, strict=True):
        assert theirs.item() == pytest.approx(float(ours), rel=1e-5), name
    assert parts.total(HYPERS.ent_coef).item() == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_agree(version, case):
    _, gradients = loss_of_ape_jax(case, HYPERS)
    trainer = trainer_at(version, case, HYPERS)
    for tensor in weights(trainer.params):
        tensor.requires_grad_()
    losses_of(version, trainer, case).total(HYPERS.ent_coef).backward()
    expected = weights(to_torch(gradients))
    for index, tensor in enumerate(weights(trainer.params)):
        assert_close(expected[index].numpy(), tensor.grad, 2e-5, f"weights {index}")


@pytest.mark.parametrize("max_grad_norm", [CLIPPING, NOT_CLIPPING])
@pytest.mark.parametrize("version", VERSIONS)
def test_optimiser_steps_agree(version, max_grad_norm, case):
    """Three, with the rates falling, on gradients that both are given."""
    hypers = dataclasses.replace(HYPERS, max_grad_norm=max_grad_norm)
    state = pg.create_state(jax.random.key(0), case.networks, hypers)
    state = dataclasses.replace(state, params=case.params)
    trainer = trainer_at(version, case, hypers)
    for step in range(3):
        now = dataclasses.replace(case, params=state.params)
        _, gradients = loss_of_ape_jax(now, hypers)
        norm = float(np.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(gradients.heads))))
        assert (norm > max_grad_norm) == (max_grad_norm == CLIPPING)
        start = weights(to_torch(state.params))
        before = [tensor.detach().clone() for tensor in weights(trainer.params)]
        state = pg.apply_gradients(state, gradients, hypers, case.config.num_updates)
        descend(version, trainer, case, to_torch(gradients))
        end = weights(to_torch(state.params))
        for index, tensor in enumerate(weights(trainer.params)):
            ours, theirs = end[index] - start[index], tensor - before[index]
            assert_close(ours.numpy(), theirs, 1e-4, f"step {step}, weights {index}")


def descend(version, trainer, case, gradients):
    """One step of the trainer's optimiser along given gradients."""
    if version == "compiled":
        compiled.apply_gradients(
            trainer.params, trainer.moments, trainer.count, gradients, case.config, trainer.hypers
        )
        return
    pairs = zip(weights(trainer.params), weights(gradients), strict=True)
    trainer.minimise(sum((tensor * gradient).sum() for tensor, gradient in pairs))


def test_gridworld_moves_as_ape_jax_does():
    """Every action in every cell, by the step and by the tables."""
    env = GridWorld()
    cells, actions = np.divmod(np.arange(500), 5)
    state = EnvState(
        time=jnp.zeros(500, jnp.int32),
        row=jnp.asarray(cells // 10, jnp.int32),
        column=jnp.asarray(cells % 10, jnp.int32),
    )
    step = jax.vmap(env.step_env, in_axes=(None, 0, 0, None))
    expected, _, reward, terminated, _ = step(
        jax.random.key(0), state, jnp.asarray(actions), env.default_params
    )
    got = gridworld.step(torch.tensor(cells), torch.tensor(actions))
    for ours, theirs in zip((expected, reward, terminated), got, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    successors, rewards = (table.flatten().numpy() for table in gridworld.tables("cpu"))
    outside = cells != gridworld.GOAL
    np.testing.assert_array_equal(np.asarray(expected)[outside], successors[outside])
    np.testing.assert_array_equal(np.asarray(reward)[outside], rewards[outside])
    assert (successors[~outside] == gridworld.GOAL).all()
    assert (rewards[~outside] == 0).all()
    assert env.default_params.max_steps_in_episode == gridworld.HORIZON


def test_gridworld_starts_everywhere_off_the_goal():
    cells = gridworld.reset(50_000, torch.Generator().manual_seed(0))
    counts = np.bincount(cells, minlength=100)
    assert counts[gridworld.GOAL] == 0
    expected = 50_000 / 99
    assert np.sum((counts[1:] - expected) ** 2 / expected) < 99 - 1 + 5 * np.sqrt(2 * 98)


def test_eager_rollout_holds_the_end_and_is_cut_at_the_limit():
    config = PGConfig(envs_per_expert=32)
    trainer = eager.Trainer(config, PGHypers())
    episodes, _ = eager.collect(trainer.params, config, trainer.generator)
    ends = episodes.cells == gridworld.GOAL
    assert ends.any()
    assert (ends == ~episodes.mask).all()
    assert (episodes.rewards == -episodes.mask.float()).all()
    lengths = episodes.mask.sum(-1)
    assert lengths.max() == 100


def test_compiled_draws_actions_by_their_probabilities():
    """All places and actions, on the samples of a rollout's first steps; five standard errors."""
    config = PGConfig(envs_per_expert=20_000)
    trainer = compiled.Trainer(config, PGHypers(), seed=1)
    places = trainer.blocks + gridworld.reset(len(trainer.blocks), trainer.generator)
    trainer.words.random_(-(2**63), None, generator=trainer.generator)
    limits = compiled.thresholds(trainer.params.heads, config.activation)
    keys, last = compiled.act(places, trainer.words[:3], limits, trainer.successors)
    np.testing.assert_array_equal(keys[0] // 5, places)
    np.testing.assert_array_equal(trainer.successors[keys[:-1]], keys[1:] // 5)
    np.testing.assert_array_equal(trainer.successors[keys[-1]], last)
    taken = np.bincount(keys.flatten(), minlength=1505)[:1500].reshape(3, 100, 5)
    visits = taken.sum(-1, keepdims=True)
    assert (visits[:, gridworld.GOAL] == 0).all()
    taken, visits = (np.delete(x, gridworld.GOAL, axis=1) for x in (taken, visits))
    heads = jax.nn.log_softmax(jnp.asarray(trainer.params.heads[0].numpy()))
    probs = np.asarray(
        jnp.exp(jnp.concatenate([heads, jax.nn.logsumexp(heads - jnp.log(2.0), axis=0)[None]]))
    )
    probs = np.delete(probs, gridworld.GOAL, axis=1)
    error = np.sqrt(visits * probs * (1 - probs))
    scores = (taken - visits * probs) / error
    assert visits.min() > 500
    assert np.abs(scores).max() < 5
    assert np.square(scores).mean() == pytest.approx(1.0, abs=0.15)


def test_four_thresholds_in_a_word_are_compared_as_four_numbers():
    """Also at the ends, 0 and 2^15."""
    cuts = torch.tensor([[0, 0, 2**15, 2**15], [1, 2, 3, 2**15 - 1], [0, 100, 100, 2**15]])
    packed = sum(column << 16 * place for place, column in enumerate(cuts.unbind(dim=1)))
    numbers = torch.tensor([0, 1, 2, 3, 99, 100, 2**15 - 2, 2**15 - 1])
    words = sum(numbers[first::4] << 16 * first for first in range(4))
    successors = torch.arange(3).repeat_interleave(5)  # Each stays where it is.
    for place, row in enumerate(cuts):
        keys, _ = compiled.act(torch.tensor([place]), words[:, None], packed, successors)
        expected = (row <= numbers[:, None]).sum(-1)
        np.testing.assert_array_equal(keys[:, 0] - 5 * place, expected)


def test_compiled_rollout_ends_with_the_last_episodes(monkeypatch):
    """It has the same statistics as all steps in one block, from the same random numbers.

    The first case ends early, and in the second the observer alone goes on.
    """
    monkeypatch.setattr(compiled, "STEPS_PER_GRAPH", 20)
    config = PGConfig(envs_per_expert=8)
    trainer = compiled.Trainer(config, PGHypers(), seed=1)
    trainer.words.random_(-(2**63), None, generator=trainer.generator)
    starts = trainer.blocks + 9  # In the upper right corner: the goal is nine steps to the left.
    left, stay = 2, 4
    walk = torch.tensor([left, left, left]).repeat_interleave(100)
    wait = torch.tensor([left, left, stay]).repeat_interleave(100)
    for actions, shapes in ((walk, [(20, 32)]), (wait, [(20, 32)] + 4 * [(20, 16)])):
        cuts = 2**15 * (torch.arange(4) >= actions[:, None]).long()
        packed = sum(column << 16 * place for place, column in enumerate(cuts.unbind(dim=1)))
        packed = torch.nn.functional.pad(packed, (0, 1))
        with not_compiled():
            records = trainer.act(starts, packed)
            assert [tuple(keys.shape) for keys in records] == shapes
            found = trainer.summarize(records)
            whole, _ = compiled.act(starts, trainer.words, packed, trainer.successors)
            expected = trainer.summarize([whole])
        for ours, theirs in zip(found.tables(2), expected.tables(2), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        np.testing.assert_allclose(found.squares, expected.squares, rtol=1e-6)
        lengths = found.tables(2)[0].sum((1, 2)) / torch.tensor([8, 8, 16])
        assert lengths.tolist() == [9, 9, 9 if shapes == [(20, 32)] else 100]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_training_ends_where_ape_jax_ends(version, monkeypatch):
    """Mean returns over seeds after a short training, at four standard errors."""
    monkeypatch.setattr(compiled, "STEPS_PER_GRAPH", 20)  # Compiles in a fifth of the time.
    num_updates, num_envs = 120, 64
    seeds = {"eager": 3, "compiled": 6}[version]
    config = PGConfig(num_updates=num_updates, envs_per_expert=num_envs)
    train = jax.jit(jax.vmap(algorithms.make_train(config), in_axes=(0, None)))
    _, metrics = train(jax.vmap(jax.random.key)(jnp.arange(8)), PGHypers())
    window = 10
    got = {"pe_return": [], "observer_return": []}
    for seed in range(seeds):
        trainer = VERSIONS[version].Trainer(config, PGHypers(), seed=seed)
        history = [trainer.update() for _ in range(num_updates)]
        for name, values in got.items():
            values.append(np.mean([float(step[name]) for step in history[-window:]]))
    for name, values in got.items():
        ours = np.asarray(getattr(metrics, name))[:, -window:].mean(-1)
        error = np.sqrt(ours.var(ddof=1) * (1 / len(ours) + 1 / seeds))
        difference = np.mean(values) - ours.mean()
        print(f"{version} {name}: {difference:.2f} ± {error:.2f} from {ours.mean():.2f}")
        assert abs(difference) < 4 * error
