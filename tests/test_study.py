"""The engine of benchmarks/study: starts, arms, scores, and how cells are kept."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import log_loss

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
try:
    from benchmarks.study import (
        __main__,
        cells,
        data,
        exploration,
        models,
        plan,
        starts,
        tasks,
        training,
    )
finally:
    del sys.path[0]

INPUTS = 12
X = np.random.default_rng(0).normal(size=(16, INPUTS)).astype(np.float32)


def initial(model):
    return nnx.split(model, nnx.Param)


@functools.partial(jax.jit, static_argnums=0)
def output(graph, params, x=X):
    return nnx.merge(graph, params)(x)


copied_units = jax.jit(starts.copied_units)
copied_experts = jax.jit(starts.copied_experts)


# The plan.


def test_the_page_of_the_plan_is_the_plan_in_code():
    page = (ROOT / "benchmarks/study/plan.md").read_text()
    assert plan.describe() in page
    numbers = re.findall(r"(\d,\d{3}) comparisons", page)
    numbers += re.findall(r"number of comparisons: (\d,\d{3})", page)
    assert set(numbers) == {f"{plan.COMPARISONS:,}"}
    assert len(numbers) == 2


def test_arms_of_a_block_have_names_of_their_own():
    for block in (*plan.BLOCKS, *exploration.BLOCKS):
        names = [arm.name for arm in block.arms]
        assert len(set(names)) == len(names)
        assert names[0] == "dense"  # the others may take its rate
        for arm in block.arms:
            masks = "LRD", "SkipUpdate", "Magma"
            masked = arm.family.startswith(masks) and arm.keep_prob < 1
            assert (arm.kind == "LRD") == masked


# Starts.


def mlp(*widths, seed=0):
    return initial(models.MLP(INPUTS, widths, nnx.Rngs(seed)))


def image_net(channels, seed=0):
    return initial(models.CNN((6, 6, 1), channels, nnx.Rngs(seed)))


def mixture(experts, seed=0):
    return initial(models.Mixture(INPUTS, 6, 3, experts, nnx.Rngs(seed)))


def decoder(hidden, seed=0):
    return initial(models.Transformer(7, 8, 16, hidden, 2, nnx.Rngs(seed)))


def with_biases(params):
    """Biases begin at 0, which would hide a wrong one."""
    random = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: np.float32(random.normal(size=leaf.shape) / 2), params
    )


@pytest.mark.parametrize("shares", [None, 3], ids=["even", "uneven"])
@pytest.mark.parametrize(
    ("small", "large", "x"),
    [
        (mlp(3, 2), mlp(12, 8, seed=1), X),
        (image_net(2), image_net(8, seed=1), np.ones((4, 36), np.float32) * X[:4, :1]),
        (decoder(3), decoder(12, seed=1), np.arange(16).reshape(2, 8) % 7),
    ],
    ids=["units", "channels", "decoder"],
)
def test_copied_units_are_the_same_function(small, large, x, shares):
    (graph, params), (wide_graph, template) = small, large
    params = with_biases(params)
    shares = None if shares is None else jax.random.key(shares)
    wide = copied_units(params, template, shares)
    chex.assert_trees_all_equal_shapes(wide, template)
    np.testing.assert_allclose(
        output(wide_graph, wide, x), output(graph, params, x), rtol=2e-5, atol=2e-5
    )


def test_copied_experts_are_the_same_function_with_any_router():
    (graph, params), (wide_graph, template) = mixture(1), mixture(4, seed=1)
    params = with_biases(params)
    for router in (None, jax.random.key(3)):
        wide = copied_experts(params, template, router)
        chex.assert_trees_all_equal_shapes(wide, template)
        np.testing.assert_allclose(
            output(wide_graph, wide), output(graph, params), rtol=2e-5, atol=2e-5
        )
    routed = [
        leaf for name, leaf in starts.leaves_by_name(wide).items() if "rou" in name
    ]
    assert jnp.std(routed[0]) > 0.1


def test_copied_layers_are_copies_that_add_half():
    _, params = initial(models.ResidualMLP(INPUTS, 5, 2, nnx.Rngs(0)))
    _, template = initial(models.ResidualMLP(INPUTS, 5, 4, nnx.Rngs(1)))
    params = with_biases(params)
    old = starts.leaves_by_name(params)
    new = starts.leaves_by_name(starts.copied_layers(params, template))
    for name, leaf in new.items():
        source = re.sub(r"\[(\d)\]", lambda m: f"[{int(m[1]) // 2}]", name)
        scale = 2 if "second" in name else 1
        np.testing.assert_array_equal(scale * leaf, old[source])


def test_noise_has_its_relative_size_and_place():
    _, params = mlp(64, 64)
    noisy = starts.add_noise(params, 0.1, jax.random.key(0), "layers")
    old, new = starts.leaves_by_name(params), starts.leaves_by_name(noisy)
    drawn = []
    for name, leaf in old.items():
        gap = np.asarray(new[name] - leaf)
        if "layers" in name and leaf.ndim == 2:
            size = float(jnp.sqrt(jnp.mean(leaf**2)))
            assert 0.08 < gap.std() / size < 0.12
            drawn.append(gap / size)
        else:
            assert not gap.any()
    assert abs(np.corrcoef(drawn[0].ravel()[:700], drawn[1].ravel()[:700])[0, 1]) < 0.2


# Arms.


def hyper(**numbers):
    usual = {"rate": 0.1, "keep_prob": 0.5, "begin": 0, "end": np.inf, "dropout": 0.0}
    return training.Hyper(**(usual | numbers))


PARAMS = {"w": jnp.ones((400, 50)), "b": jnp.zeros(3)}
GRADS = {"w": jnp.full((400, 50), 2.0), "b": jnp.zeros(3)}


def update(family, name="SGD", steps=1, **numbers):
    optimizer = training.make_optimizer(
        name, family, hyper(**numbers), None, jax.random.key(0)
    )
    state = optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(GRADS, state, PARAMS)
    return updates


@pytest.mark.parametrize("keep_prob", [0.1, 0.5])
def test_noise_has_mean_and_variance_of_unbiased_lrd(keep_prob):
    plain = update("plain")
    for family in ("noise", "LRD unbiased"):
        drawn = np.asarray(update(family, keep_prob=keep_prob)["w"] / plain["w"])
        spread = np.sqrt((1 - keep_prob) / keep_prob)
        assert abs(drawn.mean() - 1) < 5 * spread / np.sqrt(drawn.size)
        np.testing.assert_allclose(drawn.std(), spread, rtol=0.05)
        assert not update(family, keep_prob=keep_prob)["b"].any()


def test_the_mask_is_on_in_its_window_only():
    for steps, on in ((1, False), (2, True), (3, True), (4, False)):
        window = {"steps": steps, "begin": 1, "end": 3}
        updates = update("LRD", **window)
        assert bool((updates["w"] == 0).any()) == on
        plain = update("plain")["w"]
        scaled = update("scaled", **window)["w"] / plain
        np.testing.assert_array_equal(scaled, 0.5 if on else 1.0)
        noisy = update("noise", **window)["w"]
        assert bool((noisy != plain).any()) == on


def test_blocks_of_a_transformer_are_its_matrices():
    model = models.Transformer(7, 8, 16, 64, 1, nnx.Rngs(0))
    chosen = starts.leaves_by_name(training.is_block(nnx.state(model, nnx.Param)))
    names = [name for name, is_in in chosen.items() if is_in]
    assert len(names) == 6  # query, key, value, out, up, down
    assert all("attention" in name or "up" in name or "down" in name for name in names)


def test_scaled_matrices_are_those_of_attention_and_mlp_layers():
    params = nnx.state(models.Transformer(7, 8, 16, 64, 1, nnx.Rngs(0)), nnx.Param)
    numbers = hyper(keep_prob=0.25)
    optimizer = training.make_optimizer("SGD", "scaled matrices", numbers, None, None)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = jax.tree.map(
        lambda leaf, chosen: jnp.full_like(leaf, -0.25 if chosen else -1.0),
        params,
        training.is_block(params),
    )
    chex.assert_trees_all_close(
        updates, jax.tree.map(lambda x: x * numbers.rate, expected)
    )


def test_unknown_families_are_named():
    with pytest.raises(ValueError, match="family must be one of plain, LRD"):
        update("LRD twice")


# Runs.


@pytest.fixture(scope="module")
def images():
    return data.digits()


@pytest.fixture(scope="module")
def setup(images):
    return tasks.build("100 samples", "digits", images, quick=True)


BLOCK = next(block for block in plan.BLOCKS if block.regime == "100 samples")


def run(setup, arm, runs):
    return cells.train(setup, BLOCK, arm, runs, width=4)


def test_a_run_does_not_depend_on_the_runs_beside_it(setup):
    alone = [cells.Run(3, 0.1)]
    beside = [cells.Run(1, 0.5), cells.Run(3, 0.1), cells.Run(2, 0.1)]
    arm = plan.Arm("LRD 0.5", "LRD", "LRD", 0.5)
    one, three = run(setup, arm, alone), run(setup, arm, beside)
    np.testing.assert_allclose(three.losses[1], one.losses[0], rtol=1e-5)
    assert three.losses.shape == (3, setup.task.segments)
    assert not np.allclose(three.losses[2], three.losses[1])


def test_lrd_that_keeps_all_is_dense(setup):
    runs = [cells.Run(seed, 0.1) for seed in range(4)]
    dense = run(setup, plan.DENSE, runs)
    kept = run(setup, plan.Arm("LRD 1", "LRD", "LRD", 1.0), runs)
    np.testing.assert_allclose(kept.losses, dense.losses, rtol=1e-6)


def test_dropout_is_on_in_its_window_only(setup):
    """Of two passes with two steps each, it is on in one only."""
    runs = [cells.Run(seed, 0.1) for seed in range(4)]
    dense = run(setup, plan.DENSE, runs).losses
    arm = plan.Arm("dropout", "remedy", "dropout", dropout=0.5)
    late = run(setup, arm._replace(begin=2), runs).losses
    np.testing.assert_allclose(late[:, 0], dense[:, 0], rtol=1e-6)
    assert (np.abs(late[:, 1] / dense[:, 1] - 1) > 1e-3).all()
    early = run(setup, arm._replace(steps=2), runs).losses
    assert (np.abs(early[:, 0] / dense[:, 0] - 1) > 1e-3).all()


def test_training_lowers_the_loss_and_diverged_runs_guess(setup):
    outcome = run(setup, plan.DENSE, [cells.Run(0, 0.3), cells.Run(0, 1e20)])
    assert outcome.losses[0, -1] < outcome.losses[0, 0]
    assert outcome.tests["accuracy"][1] == 10
    np.testing.assert_allclose(outcome.tests["NLL"][1], np.log(10), rtol=1e-6)


def test_each_segment_has_batches_of_its_own():
    def loss(w, pool, draw, batch, drop):
        return w * batch.astype(jnp.float32).sum()

    task = training.Task(
        loss=loss,
        check=lambda *_: {},
        test=lambda *_: {},
        orders=lambda key: jax.random.randint(key, (2, 3), 0, 1000),
        segments=3,
        steps_per_segment=2,
        cosine=False,
    )
    keys = jax.random.split(jax.random.key(0), 1)
    train = training.make_program(task, "SGD", "plain")
    many = jax.tree.map(lambda x: np.full(1, x, np.float32), hyper(rate=1.0))
    outcome = train(np.zeros(1, np.float32), np.zeros(1), many, keys, keys, None)
    seen = [task.orders(jax.random.fold_in(keys[0], n)).sum() for n in range(3)]
    assert outcome.params[0] == -sum(map(int, seen))


def test_seeds_draw_images_of_their_own(setup, images):
    draw = setup.draw([0, 1])
    both = np.concatenate([draw.train, draw.valid], 1)
    assert all(len(set(row)) == len(row) for row in both)  # no image twice
    assert not np.array_equal(both[0], both[1])
    np.testing.assert_array_equal(draw.train_y, images.train_y[draw.train])


def test_wrong_labels_are_wrong_in_training_only(images):
    spec = tasks.Spec((), 900, 300, 100, 1)
    draw = tasks.draw_images(images, spec, list(range(10)), wrong=0.4)
    wrong = (draw.train_y != images.train_y[draw.train]).mean()
    assert 0.38 < wrong < 0.42  # 0.36 if a false label could be the right one
    np.testing.assert_array_equal(draw.valid_y, images.train_y[draw.valid])


# Rates.


def test_rates_are_sought_beyond_the_end():
    rates = cells.rates_of(BLOCK, cells.Scale())
    np.testing.assert_allclose(rates[-1] / rates[0], 100, rtol=1e-2)
    assert cells.beyond(rates, [0, 1, 2, 3, 2, 1, 0]) == []
    below = cells.beyond(rates, [3, 2, 1, 0, 0, 0, 0])
    above = cells.beyond(rates, [0, 0, 0, 0, 1, 2, 3])
    assert len(below) == len(above) == len(rates)
    whole = np.array([*below, *rates, *above])
    np.testing.assert_allclose(whole[1:] / whole[:-1], 10 ** (1 / 3), rtol=1e-2)


def test_the_best_rate_on_validation_data_is_chosen(setup, monkeypatch):
    """0.0215 and 0.01 look alike to two seeds; two more tell them apart."""
    asked = []

    def validate(setup, block, arm, rates, seeds, scale):
        asked.append((list(rates), list(seeds)))
        few, more = {0.01: 4.0, 0.0215: 4.5}, {0.01: 5.0, 0.0215: 2.0}
        score = few if seeds[0] == 0 else more
        return np.array([[score[rate]] * len(seeds) for rate in rates])

    monkeypatch.setattr(cells, "validate", validate)
    scale = cells.QUICK
    found = cells.tune(setup, BLOCK, plan.DENSE, scale)
    assert found["rate"] == 0.01
    assert found["validation"] == 4.5
    assert asked == [([0.01, 0.0215], [0, 1]), ([0.01, 0.0215], [2, 3])]
    smooth = BLOCK._replace(metrics=("bits",))  # one stage is enough
    assert cells.tune(setup, smooth, plan.DENSE, scale)["rate"] == 0.0215


# Scores.


def test_ensembles_are_scored_by_their_mean_probability():
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 4, 50, 10))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    labels = random.integers(10, size=(3, 50))
    scores = cells.ensemble_scores(log_p, labels)
    for one in range(3):
        mean = np.exp(log_p[one]).mean(0)
        expected = log_loss(labels[one], mean, labels=range(10))
        np.testing.assert_allclose(scores["NLL"][one], expected, rtol=1e-6)
        right = (mean.argmax(-1) == labels[one]).mean()
        np.testing.assert_allclose(scores["accuracy"][one], 100 * right)


def test_calibration_error_of_a_case_by_hand():
    # 0.95, right twice and wrong twice: off by 0.45; 0.55, all right: off by 0.45.
    confidence = np.array([[0.95] * 4 + [0.55] * 4])
    right = np.array([[1, 1, 0, 0, 1, 1, 1, 1]], bool)
    found = cells.calibration_error(confidence, right)
    np.testing.assert_allclose(found, 45)
    calibrated = np.array([[1, 0] * 4], bool)
    np.testing.assert_allclose(
        cells.calibration_error(np.full((1, 8), 0.5), calibrated), 0, atol=1e-12
    )


# Text.


def test_text_is_cut_into_parts_that_share_no_block():
    text = data.as_text("".join(chr(97 + i % 26) * (i % 7 + 1) for i in range(60_000)))
    sizes = [len(part) for part in text[:3]]
    assert sizes == [64_000, 16_000, 32_000]
    assert text.letters == 26
    with pytest.raises(ValueError, match="at least 112000 characters, got 3"):
        data.as_text("abc")


# How cells are kept.


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    here = {"commit": "x", "processor": "y", "jax": "z"}
    results = __main__.Results(tmp_path, "40 % wrong labels", here)
    record = {"block": "a", "arm": "dense", "seeds": "test", "rate": 0.1}
    results.add(record)
    with results.file.open("a") as stream:
        stream.write('{"block": "a", "arm"')
    again = __main__.Results(tmp_path, "40 % wrong labels", here)
    assert again.records == [record | here]
    again.add(record | {"arm": "LRD 0.5"})
    lines = again.file.read_text().splitlines()
    assert [json.loads(line)["arm"] for line in lines] == ["dense", "LRD 0.5"]
    assert again.find("a", "LRD 0.5")["rate"] == 0.1
    assert again.find("a", "LRD 0.5", "replication") is None


def test_an_interrupted_block_goes_on_with_the_cells_that_miss(tmp_path, monkeypatch):
    arms = BLOCK.arms[:3]
    block = BLOCK._replace(arms=arms)
    done = []

    def cell(setup, block, arm, dense_rate, scale):
        if len(done) == 2 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        done.append((arm.name, dense_rate))
        results = {"accuracy": [1.0, 2.0]}
        names = {"block": block.name, "arm": arm.name, "seeds": "test"}
        return names | {"rate": 0.5, "validation": 1.0, "results": results}

    monkeypatch.setattr(cells, "run_cell", cell)
    monkeypatch.setattr(
        cells, "time_alone", lambda *_: {"block": block.name, "speed": 1}
    )
    for _ in range(2):
        results = __main__.Results(tmp_path, block.regime, {})
        try:
            __main__.run_block(block, None, results, cells.QUICK, lambda *_: None)
        except KeyboardInterrupt:
            continue
    assert done == [(arms[0].name, None), (arms[1].name, 0.5), (arms[2].name, 0.5)]


def test_the_command_prints_the_plan_and_refuses_other_regimes():
    command = [sys.executable, "-m", "benchmarks.study"]
    shown = subprocess.run(
        [*command, "--plan"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.stdout.strip().endswith(f"{plan.COMPARISONS:,} comparisons")
    wrong = subprocess.run(
        [*command, "--only", "bad luck"], cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "got bad luck" in wrong.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["--only", "short growth"], "theory; got short growth"),
        (["--explore", "--only", "good start"], "fine-tuning; got good start"),
    ],
)
def test_regimes_are_those_of_the_plan_or_of_the_exploration(
    arguments, known, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    with pytest.raises(SystemExit):
        __main__.parse_options()
    assert capsys.readouterr().err.rstrip().endswith(known)


def test_help_names_the_regimes(monkeypatch, capsys):
    """One of them has a percent sign, which argparse would format."""
    monkeypatch.setattr(sys, "argv", ["study", "--help"])
    with pytest.raises(SystemExit, match="0"):
        __main__.parse_options()
    shown = " ".join(capsys.readouterr().out.split())
    assert "; 20 % wrong labels; 40 % wrong labels;" in shown


def test_the_highest_rate_that_learns_is_found(monkeypatch):
    """Rates below it may be too slow; those that diverge never count."""
    block = plan.Block("stable rates", "digits", "SGD", (plan.DENSE,), ("octaves",))
    learns = {7: range(3, 6), 8: range(4), 9: range(0)}  # by seed, which of the rates

    def train(setup, block, arm, runs, width):
        rates = [run.rate for run in runs]
        numbers = np.round(2 * np.log2(np.array(rates) / 0.01))
        seeds = [run.seed for run in runs]
        good = [n in learns[s] for n, s in zip(numbers, seeds, strict=True)]
        losses = np.where(good, 0.1, np.where(numbers > 5, np.nan, 2.3))
        return training.Outcome(None, losses[:, None], {}, {})

    monkeypatch.setattr(cells, "train", train)
    scale = cells.QUICK._replace(test_seeds=3, stable_rates=8)
    found = cells.stable_octaves(None, block, plan.DENSE, 7, scale)["octaves"]
    np.testing.assert_allclose(found, np.log2(0.01) + np.array([5, 3, -1]) / 2)
