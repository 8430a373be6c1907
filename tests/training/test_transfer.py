import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.config import ConfigError, parse
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store
from training.models.trunks import TrunkConfig, build_trunk
from training.pretrain import export_trunk
from training.run import RunConfig
from training.transfer.config import TransferConfig
from training.transfer.evaluate import require_classes, split_by_hash, transfer
from training.transfer.features import extract_features, load_trunk
from training.transfer.svm import Split, mean_class_accuracy, score_layers

CPU = torch.device("cpu")
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
KEYS = [f"{n:020x}" for n in range(400)]
LABELS = np.arange(400) % 4


def config_of(**changes):
    plain = {"view_px": 32, "test_share": 0.3, "map_side": 2, "costs": (0.01,)}
    return TransferConfig(**{**plain, **changes})


def sides(split, keys):
    return {keys[i]: side for side in ("train", "test") for i in getattr(split, side)}


def test_every_labelled_image_is_on_one_side():
    labels = np.where(np.arange(400) % 10 == 0, -1, LABELS)  # Some have no label.
    split = split_by_hash(KEYS, labels, config_of())
    both = np.concatenate([split.train, split.test])
    assert sorted(both) == np.flatnonzero(labels >= 0).tolist()
    assert len(split.test) / len(both) == pytest.approx(0.3, abs=0.07)
    for side in (split.train, split.test):
        assert set(labels[side]) == {0, 1, 2, 3}


@pytest.mark.parametrize("changes", [{}, {"train_per_class": 30, "test_per_class": 10}])
def test_added_images_move_none_to_the_other_side(changes):
    before = sides(split_by_hash(KEYS[:300], LABELS[:300], config_of(**changes)), KEYS[:300])
    order = np.random.default_rng(0).permutation(400)  # Ids change too.
    keys = [KEYS[i] for i in order]
    after = sides(split_by_hash(keys, LABELS[order], config_of(**changes)), keys)
    both = before.keys() & after.keys()
    assert len(both) > 100
    assert all(before[key] == after[key] for key in both)


def test_images_of_one_class_do_not_depend_on_the_other_classes():
    whole = sides(split_by_hash(KEYS, LABELS, config_of()), KEYS)
    some = np.flatnonzero(LABELS < 2)
    keys = [KEYS[i] for i in some]
    assert sides(split_by_hash(keys, LABELS[some], config_of()), keys).items() <= whole.items()


@pytest.mark.parametrize(
    ("changes", "train", "test"),
    [
        ({"train_per_class": 20, "test_per_class": 5}, 20, 5),
        ({"max_train": 83, "max_test": 43}, 20, 10),  # Equal shares, rounded down.
        ({"train_per_class": 20, "max_train": 40}, 10, None),  # The tighter one holds.
        ({"max_test": 2}, None, 1),  # Fewer than classes: one each.
    ],
)
def test_caps_hold_for_every_class(changes, train, test):
    split = split_by_hash(KEYS, LABELS, config_of(**changes))
    free = split_by_hash(KEYS, LABELS, config_of())
    for side, cap in (("train", train), ("test", test)):
        rows, all_rows = getattr(split, side), getattr(free, side)
        assert set(rows) <= set(all_rows)
        if cap is None:
            assert len(rows) == len(all_rows)
        else:
            assert np.bincount(LABELS[rows]).tolist() == [cap] * 4


def test_a_class_that_is_too_small_for_the_folds_is_left_out():
    labels = np.where(np.arange(400) == 7, 4, LABELS)
    split = split_by_hash(KEYS, labels, config_of())
    for side in (split.train, split.test):
        assert np.unique(labels[side]).tolist() == [0, 1, 2, 3]


def test_fewer_than_two_classes_that_are_large_enough_are_refused():
    labels = np.where(np.arange(400) == 7, 1, 0)
    with pytest.raises(ConfigError, match=r"^1 of 2 classes have folds \(=3\) training images"):
        split_by_hash(KEYS, labels, config_of())


@pytest.mark.parametrize(
    ("classes", "found"), [(None, 0), ((), 0), (("one",), 1), (("one", "two"), None)]
)
def test_fewer_than_two_classes_are_refused(shards, classes, found):
    manifest = read_manifest(shards).model_copy(update={"classes": classes})
    if found is None:
        return require_classes(manifest, shards)
    with pytest.raises(ConfigError) as caught:
        require_classes(manifest, shards)
    assert str(caught.value) == (
        f"manifest (={shards}) has {found} classes, a transfer needs at least 2. Shard a tree "
        "whose last folder level names the classes."
    )


def trunk_of(name, seed=0):
    torch.manual_seed(seed)
    return build_trunk(TrunkConfig(name=name))


def test_an_exported_trunk_is_loaded_as_it_was(tmp_path):
    saved, loaded = trunk_of("small", 1), trunk_of("small", 2)
    export_trunk(saved, tmp_path / "trunk.safetensors")
    load_trunk(loaded, tmp_path / "trunk.safetensors")
    ours = loaded.export()
    assert all(torch.equal(value, ours[key]) for key, value in saved.export().items())


def test_weights_of_another_architecture_name_the_first_keys(tmp_path):
    export_trunk(trunk_of("resnet18"), tmp_path / "trunk.safetensors")
    with pytest.raises(ConfigError) as caught:
        load_trunk(trunk_of("small"), tmp_path / "trunk.safetensors")
    text = str(caught.value)
    assert (
        "are of another architecture: layer1.1.bn1.bias, layer1.1.bn1.num_batches_tracked" in text
    )
    assert text.endswith("Give the trunk section that they were trained with.")
    assert "\n" not in text


def test_weights_of_another_shape_are_named(tmp_path):
    weights = trunk_of("small").export() | {"conv1.weight": torch.zeros(32, 3, 7, 7)}
    (tmp_path / "trunk.safetensors").write_bytes(safetensors.torch.save(weights))
    with pytest.raises(ConfigError, match=r"architecture: conv1.weight differs \(1 keys in all\)"):
        load_trunk(trunk_of("small"), tmp_path / "trunk.safetensors")


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (type(self.mark).touch, (self.mark,))


def test_files_that_hold_no_tensors_are_refused_and_never_run(tmp_path):
    path, mark = tmp_path / "trunk.safetensors", tmp_path / "was_run"
    export_trunk(trunk_of("small"), path)
    whole = path.read_bytes()
    for broken in (b"", whole[:1000], whole[:-1], b"\xff" * 100, pickle.dumps(Payload(mark))):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match=r"weights \(=.*\) cannot be read") as caught:
            load_trunk(trunk_of("small"), path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ConfigError, match=r"weights \(=.*\) cannot be read"):
        load_trunk(trunk_of("small"), path)
    assert not mark.exists()


@pytest.mark.parametrize("batch", [7, 64])
def test_features_are_rows_in_the_order_given_whatever_the_batch(shards, batch):
    store, trunk = Store(shards), trunk_of("small")
    ids = np.array([150, 3, 77, 20, 197, 0, 5, 6])
    done = []
    features = extract_features(trunk, store, ids, config_of(batch=batch), done.append)
    assert done[-1] == 8
    backwards = extract_features(trunk, store, ids[::-1].copy(), config_of(), done.append)
    for name, rows in features.items():
        assert rows.dtype == np.float32
        assert rows == pytest.approx(backwards[name][::-1], abs=1e-4)


def test_maps_hold_the_places_that_the_gap_averages(shards):
    config = config_of(view_px=64, map_side=4)
    features = extract_features(
        trunk_of("small"), Store(shards), np.arange(3), config, lambda done: None
    )
    assert set(features) == {f"{stage}.{kind}" for stage in STAGES for kind in ("gap", "map")}
    for stage, width in zip(STAGES, (32, 32, 64, 128, 256), strict=True):
        places = features[f"{stage}.map"].reshape(3, width, 4 * 4)
        assert places.mean(axis=2) == pytest.approx(features[f"{stage}.gap"], abs=1e-4)
        assert places.std(axis=2).max() > 0.01


def clouds(distance, *, num=240, dimension=6):
    """Two classes, 3 to 1, whose centres are `distance` apart on one axis."""
    rng = np.random.default_rng(0)
    labels = (np.arange(num) % 4 == 0).astype(np.int64)
    rows = rng.normal(size=(num, dimension))
    rows[:, 0] += distance * labels
    split = Split(np.arange(num // 2), np.arange(num // 2, num))
    return rows.astype(np.float32), labels, split


def score(features, labels, split, **changes):
    return score_layers(features, labels, split, config_of(**changes), lambda layer: None)


def test_classes_that_a_plane_parts_are_told_apart():
    rows, labels, split = clouds(12)
    (layer,) = score({"a": rows}, labels, split).values()
    assert (layer.score, layer.cost, layer.dimension) == (100, 0.01, 6)


def test_noise_scores_near_chance_though_one_class_is_frequent():
    rows, labels, split = clouds(0)
    (layer,) = score({"a": rows}, labels, split).values()
    assert 40 < layer.score < 60  # The share of right answers would be 75.


def test_layers_keep_their_order_and_their_scale_does_not_matter():
    rows, labels, split = clouds(3)
    layers = score({"z": rows, "a": rows * 1e4, "m": rows * 0.1 + 50}, labels, split)
    assert list(layers) == ["z", "a", "m"]
    assert layers["a"].score == pytest.approx(layers["z"].score, abs=1)
    assert layers["m"].score == pytest.approx(layers["z"].score, abs=1)


def test_the_cost_is_one_of_the_given_and_test_images_do_not_choose_it():
    rows, labels, split = clouds(1.5)
    costs = (0.001, 0.01, 0.1)
    (layer,) = score({"a": rows}, labels, split, costs=costs).values()
    assert layer.cost in costs
    first = [split.test[labels[split.test] == k][0] for k in (0, 1)]
    few = Split(split.train, np.array(first))  # Too few to cross-validate on.
    (other,) = score({"a": rows}, labels, few, costs=costs).values()
    assert other.cost == layer.cost
    assert other.score in (0, 50, 100)


def test_every_class_counts_the_same():
    labels, guesses = np.array([0] * 90 + [1] * 10), np.zeros(100, dtype=np.int64)
    assert mean_class_accuracy(labels, guesses) == 0.5


@pytest.fixture(scope="module")
def result(shards, tmp_path_factory):
    """A transfer of a trunk whose filters differ from the random one's."""
    out = tmp_path_factory.mktemp("run")
    export_trunk(trunk_of("small", seed=99), out / "trunk.safetensors")
    raw = {
        "out": out,
        "seed": 0,
        "data": {"manifest": shards},
        "trunk": {"name": "small"},
        "transfer": {**config_of().model_dump(), "test_per_class": 12, "costs": [0.001, 0.01]},
    }
    seen = []
    returned = transfer(parse(RunConfig, raw, "config"), CPU, lambda *now: seen.append(now))
    written = json.loads((out / "transfer.json").read_text())
    return returned, written, seen


def test_a_transfer_leaves_its_scores(result):
    returned, written, _ = result
    assert written == json.loads(json.dumps(returned))
    layers = {f"{stage}.{kind}" for stage in STAGES for kind in ("gap", "map")}
    for name in ("random", "pretrained"):
        assert set(written[name]) == layers
        assert all(0 <= value <= 100 for value in written[name].values())
        assert written[f"best_{name}"] == max(written[name].values())
    assert written["metric"] == "mean per-class accuracy of a linear SVM, percent"
    assert (written["classes"], written["chance"], written["test_images"]) == (4, 25, 48)
    assert written["random"] != written["pretrained"]
    # Discs and bars of random colours: the filters of even a random trunk tell more than chance.
    assert written["best_random"] > 30


def test_progress_is_told_to_its_end(result):
    _, written, seen = result
    num_images = written["train_images"] + written["test_images"]
    ends = {what: (done, total) for what, done, total in seen}
    assert ends == {
        "random: features": (num_images, num_images),
        "random: SVMs": (10, 10),
        "pretrained: features": (num_images, num_images),
        "pretrained: SVMs": (10, 10),
    }


def test_a_transfer_without_its_section_is_refused(shards, tmp_path):
    raw = {"out": tmp_path, "seed": 0, "data": {"manifest": shards}, "trunk": {"name": "small"}}
    with pytest.raises(ConfigError, match=r"^transfer is missing"):
        transfer(parse(RunConfig, raw, "config"), CPU, lambda *now: None)
    assert not list(tmp_path.iterdir())
