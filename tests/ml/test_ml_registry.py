"""The registry and scoring: names, versions, aliases, and batches of columns."""

import numpy as np
import pyarrow as pa
import pytest
from machines import FEATURES, machines

from headrace.core.errors import DataError, NotFound, UserError
from headrace.ml.features import matrix
from headrace.ml.registry import CARD, ModelRegistry
from headrace.ml.scoring import ServedModel, as_function
from headrace.ml.training import train


@pytest.fixture(scope="module")
def regression():
    return train(machines(), FEATURES, "life", "regression", "gradient_boosting", seed=1, group="machine")


@pytest.fixture(scope="module")
def registry(tmp_path_factory, regression):
    made = ModelRegistry(tmp_path_factory.mktemp("ml"))
    made.register("life", regression)
    return made


def columns(table=None):
    table = table or machines(seed=8, count=2, rows=30)
    return [table[name].combine_chunks() for name in FEATURES]


def test_a_registered_model_predicts_as_the_trained_one_did(registry, regression):
    x = matrix(machines(seed=8), FEATURES)
    loaded = registry.load("life")
    assert (loaded.predict(x) == regression.model.predict(x)).all()
    assert (loaded.features, loaded.name) == (FEATURES, "life")


def test_a_second_version_takes_over_the_alias_and_promotion_gives_it_back(registry):
    linear = train(machines(), FEATURES, "life", "regression", "linear", seed=1, group="machine")
    served = ServedModel(registry, "life")
    before = served.score(columns()).to_pylist()
    assert not served.refresh()
    newer = registry.register("life", linear)
    assert served.refresh()
    assert served.loaded.version == newer == registry.version_at("life")
    assert served.score(columns()).to_pylist() != before
    registry.promote("life", newer - 1)
    assert served.refresh()
    assert served.score(columns()).to_pylist() == before
    newest = registry.versions("life")[0]
    assert (newest.version, newest.aliases, newest.algorithm) == (newer, (), "linear")
    assert newest.metrics["rmse"] == pytest.approx(linear.metrics["rmse"])


def test_a_version_with_other_features_is_not_served_under_a_running_job(registry):
    registry.register("narrow", train(machines(), FEATURES, "life", "regression", "linear"))
    served = ServedModel(registry, "narrow")
    registry.register("narrow", train(machines(), FEATURES[:2], "life", "regression", "linear"))
    with pytest.raises(UserError, match="takes wear, load;"):
        served.refresh()
    assert len(served.score(columns())) == 60


def test_mlflow_sees_and_loads_the_same_model(registry, regression):
    import mlflow.sklearn
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{registry._database}"
    version = MlflowClient(tracking_uri=uri, registry_uri=uri).get_model_version("life", "1")
    x = matrix(machines(seed=8), FEATURES)
    assert (mlflow.sklearn.load_model(version.source).predict(x) == regression.model.predict(x)).all()


def test_a_row_with_an_empty_feature_has_an_empty_score(registry):
    wear, load, noise = columns()
    holed = pa.array([None, float("nan"), *wear.to_pylist()[2:]])
    scores = as_function(registry.load("life"))([holed, load, noise])
    whole = as_function(registry.load("life"))([wear, load, noise])
    assert scores.null_count == 2
    assert scores.to_pylist()[2:] == whole.to_pylist()[2:]
    assert whole.type == pa.float64()


def test_integers_and_all_empty_columns_can_be_scored(registry):
    score = as_function(registry.load("life"))
    assert score([pa.array([1, 0]), pa.array([1, 1]), pa.array([0, 0])]).null_count == 0
    assert score([pa.nulls(2), pa.array([1, 1]), pa.array([0, 0])]).to_pylist() == [None, None]
    assert len(score([pa.array([], pa.float64())] * 3)) == 0


def test_the_wrong_number_of_arguments_names_the_features(registry):
    with pytest.raises(UserError, match="wear, load, noise"):
        as_function(registry.load("life"))(columns()[:2])


def test_an_unknown_model_names_the_nearest(registry, tmp_path):
    with pytest.raises(NotFound, match="did you mean 'life'"):
        registry.load("live")
    with pytest.raises(NotFound, match="headrace model train life"):
        ModelRegistry(tmp_path).load("life")
    with pytest.raises(NotFound, match="no version 77"):
        registry.promote("life", 77)


def test_a_damaged_model_file_is_named(registry):
    version = registry.register("doomed", train(machines(), FEATURES, "life", "regression", "linear"))
    card = max(registry._folder.glob(f"artifacts/*/artifacts/model/{CARD}"), key=lambda path: path.stat().st_mtime_ns)
    (card.parent / "model.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=f"version {version} cannot be read"):
        registry.load("doomed")


def test_scores_are_chances_for_a_classification(registry):
    registry.register("fails", train(machines(), FEATURES, "fails", "classification", "gradient_boosting"))
    scores = as_function(registry.load("fails"))(columns()).to_numpy()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert np.ptp(scores) > 0.5
