"""Training: honest figures, clear refusals."""

import sys

import numpy as np
import provided
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq
import pytest
from machines import FEATURES, machines

from headrace.core.errors import DataError, NotFound, Unavailable, UserError
from headrace.ml.features import group_labels, matrix, rolling_means
from headrace.ml.training import held_out, predict, train, train_from_file

DATA = provided.DATA


@pytest.mark.parametrize(
    ("algorithm", "share"), [("gradient_boosting", 0.35), ("random_forest", 0.35), ("linear", 0.5)]
)
def test_every_algorithm_learns_how_machines_wear(algorithm, share):
    trained = train(machines(), FEATURES, "life", "regression", algorithm, seed=1, group="machine")
    assert trained.metrics["rmse"] < share * trained.metrics["rmse_of_mean"], trained.metrics
    assert trained.rows == 24 * 60
    assert trained.metrics["rows_held_out"] == 6 * 60


@pytest.mark.parametrize("algorithm", ["gradient_boosting", "random_forest", "linear"])
def test_every_algorithm_tells_failing_machines_from_sound_ones(algorithm):
    trained = train(machines(), FEATURES, "fails", "classification", algorithm, seed=1, group="machine")
    assert trained.metrics["auc"] > 0.95
    assert 0 < trained.metrics["f1"] <= 1
    chances = predict(trained.model, "classification", matrix(machines(), FEATURES))
    assert 0 <= chances.min() < chances.max() <= 1


def test_a_target_that_follows_the_machine_only_scores_no_better_than_its_mean_on_unseen_machines():
    rng = np.random.default_rng(0)
    machine = np.repeat(np.arange(40), 25)
    secret = rng.normal(size=40)[machine]
    table = pa.table({"machine": machine, "fingerprint": machine * 1.0, "target": secret})
    by_row = train(table, ["fingerprint"], "target", seed=1)
    by_machine = train(table, ["fingerprint"], "target", seed=1, group="machine")
    assert by_row.metrics["rmse"] < 0.4 * by_row.metrics["rmse_of_mean"]
    assert by_machine.metrics["rmse"] > 0.8 * by_machine.metrics["rmse_of_mean"]


def test_groups_are_kept_whole_and_both_parts_are_never_empty():
    groups = np.repeat(np.arange(10), 7)
    out = held_out(groups, seed=5)
    assert not set(groups[out]) & set(groups[~out])
    assert 0 < out.sum() < len(out)


def test_the_same_seed_trains_the_same_model():
    x = matrix(machines(), FEATURES)
    first, again = (train(machines(), FEATURES, "life", seed=9, group="machine") for _ in range(2))
    assert first.metrics == again.metrics
    assert (predict(first.model, "regression", x) == predict(again.model, "regression", x)).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": ("waer",)}, NotFound, "did you mean 'wear'"),
        ({"features": ("machine",)}, UserError, "holds string"),
        ({"features": ()}, UserError, "no features"),
        ({"features": ("wear", "life")}, UserError, "among the features"),
        ({"algorithm": "gradient_bosting"}, UserError, "did you mean 'gradient_boosting'"),
        ({"task": "clasification"}, UserError, "did you mean 'classification'"),
        ({"task": "classification"}, DataError, "must hold 0 and 1"),
        ({"table": machines(rows=1, count=5)}, DataError, "5 usable rows"),
        ({"table": machines(count=1), "group": "machine"}, DataError, "one group"),
    ],
)
def test_what_cannot_be_trained_says_why(change, error, words):
    given = {"table": machines(), "features": FEATURES, "target": "life"} | change
    with pytest.raises(error, match=words):
        train(**given)


def test_rows_with_empty_values_are_left_out_only_where_the_algorithm_cannot_take_them():
    table = machines()
    wear = pc.if_else(pc.greater(table["noise"], 0.0), None, table["wear"])
    table = table.set_column(1, "wear", wear)
    assert train(table, FEATURES, "life", algorithm="gradient_boosting").rows == table.num_rows
    assert train(table, FEATURES, "life", algorithm="linear").rows == table.num_rows - wear.null_count


def test_rolling_means_see_a_groups_own_past_only():
    table = pa.table({"m": ["b", "a", "a", "a", "b"], "t": [1, 2, 1, 3, 2], "v": [10.0, 2.0, 1.0, 6.0, 20.0]})
    rolled = rolling_means(table, ["v"], group="m", order="t", windows=[2])
    assert rolled["m"].to_pylist() == ["a", "a", "a", "b", "b"]
    assert rolled["v_mean2"].to_pylist() == pytest.approx([1.0, 1.5, 4.0, 10.0, 15.0])


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_file_trains_as_the_table_does(tmp_path, name):
    path = tmp_path / name
    (pv.write_csv if name.endswith("csv") else pq.write_table)(machines(), path)
    from_file = train_from_file(path, features=FEATURES, target="life", group="machine")
    assert from_file.metrics["rmse"] == pytest.approx(
        train(machines(), FEATURES, "life", group="machine").metrics["rmse"]
    )


def test_a_missing_file_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        train_from_file(tmp_path / "nowhere.csv", features=FEATURES, target="life")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="broken"):
        train_from_file(tmp_path / "broken.parquet", features=FEATURES, target="life")


def test_a_missing_extra_is_unavailable_and_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(Unavailable) as caught:
        train(machines(), FEATURES, "life", "regression", "gradient_boosting")
    assert "headrace[ml]" in caught.value.hint


@pytest.mark.skipif(not (DATA / "cmapss").is_dir(), reason="C-MAPSS is not on this machine")
def test_remaining_life_of_unseen_engines_is_told_about_as_well_as_the_baselines_do():
    sensors = [f"s{n}" for n in (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)]

    def engines(name):
        return rolling_means(pv.read_csv(DATA / "cmapss" / name), sensors, group="unit", order="cycle", windows=(5, 30))

    known, unseen = engines("train_FD001.csv.gz"), engines("test_FD001.csv.gz")
    unit, cycle = known["unit"].to_numpy(), known["cycle"].to_numpy()
    life = np.bincount(unit, weights=np.append(unit[1:] != unit[:-1], True) * cycle)[unit] - cycle
    known = known.append_column("life", pa.array(np.minimum(life, 125.0)))
    features = [f"{s}_mean{w}" for s in sensors for w in (5, 30)]
    trained = train(known, features, "life", "regression", "gradient_boosting", seed=0, group="unit")
    labels = group_labels(unseen, "unit")
    last = np.append(labels[1:] != labels[:-1], True)
    told = predict(trained.model, "regression", matrix(unseen, features)[last])
    truth = np.minimum(pv.read_csv(DATA / "cmapss" / "RUL_FD001.csv")["rul"].to_numpy(), 125)
    rmse = float(np.sqrt(np.mean((told - truth) ** 2)))
    print(f"FD001 (true life cut at 125): RMSE {rmse:.1f} on test engines, held-out {trained.metrics['rmse']:.1f}")
    assert rmse < 18
    assert trained.metrics["rmse"] < 0.5 * trained.metrics["rmse_of_mean"]


@pytest.mark.skipif(not (DATA / "ai4i2020").is_dir(), reason="AI4I 2020 is not on this machine")
def test_milling_failures_are_ranked_about_as_well_as_the_baselines_do():
    features = ["AirTemperature[K]", "ProcessTemperature[K]", "RotationalSpeed[rpm]", "Torque[Nm]", "ToolWear[min]"]
    trained = train_from_file(
        DATA / "ai4i2020" / "ai4i2020_dev.csv.gz",
        features=features,
        target="MachineFailure",
        task="classification",
        seed=0,
    )
    shown = {name: round(value, 3) for name, value in trained.metrics.items()}
    print(f"AI4I, a quarter of the development part held out: {shown}")
    assert trained.metrics["auc"] > 0.93
    assert trained.metrics["average_precision"] > 0.6
