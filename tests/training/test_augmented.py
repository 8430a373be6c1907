from itertools import islice

import numpy as np
import pytest
import torch
from labelled_stripes import PX, multi_label, setting_of, striped_task

from pipeline.loading.crops import CropConfig, central_squares
from pipeline.pretext.normalize import normalize
from pipeline.reference import crop_view
from training.transfer.images.augmented import evaluation_batches, steps_of, train_batches

CROPS = CropConfig(min_area=0.3)


@pytest.fixture(scope="module")
def task(make_shards, tmp_path_factory):
    return striped_task(make_shards, tmp_path_factory.mktemp("stripes"), per_class=9)


def epochs_of(labelled, setting, num, *, batch=8, seed=1, crops=CROPS):
    shown = train_batches(labelled, crops, setting, batch=batch, seed=seed)
    steps = steps_of(labelled, batch)
    batches = list(islice(shown, num * steps))
    shown.close()
    return [batches[n : n + steps] for n in range(0, len(batches), steps)]


def fingerprints(batches):
    return [tuple(image.flatten()[::97].tolist()) for each in batches for image in each.images]


def test_every_image_is_shown_once_per_epoch_for_any_batch_size(task, tmp_path):
    setting = setting_of(task, tmp_path)
    central = epochs_of(task.train, setting, 2, crops=None)
    assert [len(each.images) for each in central[0]] == [7, 7, 7, 6]  # 27 in steps of at most 8.
    first, second = (fingerprints(epoch) for epoch in central)
    assert len(set(first)) == 27
    assert sorted(first) == sorted(second)
    assert first != second
    (large,) = epochs_of(task.train, setting, 1, batch=64, crops=None)
    assert fingerprints(large) == first


def test_crops_differ_between_epochs_and_repeat_with_the_seed(task, tmp_path):
    setting = setting_of(task, tmp_path)
    once, again = (epochs_of(task.train, setting, 2) for _ in range(2))
    assert [fingerprints(e) for e in once] == [fingerprints(e) for e in again]
    assert not set(fingerprints(once[0])) & set(fingerprints(once[1]))
    assert fingerprints(epochs_of(task.train, setting, 1, seed=2)[0]) != fingerprints(once[0])


def test_targets_are_those_of_the_images(task, tmp_path):
    setting = setting_of(task, tmp_path)
    by_image = {}
    for shown in evaluation_batches(task.train, "central", CROPS, setting, seed=0):
        for print_, target in zip(fingerprints([shown]), shown.targets.tolist(), strict=True):
            by_image[print_] = target
    assert list(by_image.values()) == task.train.targets.tolist()
    (epoch,) = epochs_of(task.train, setting, 1, crops=None)
    targets = [target for shown in epoch for target in shown.targets.tolist()]
    assert targets == [by_image[each] for each in fingerprints(epoch)]
    several = multi_label(task, difficult=(2,))
    (shown,) = evaluation_batches(several.train, "central", CROPS, setting, seed=0)
    assert torch.equal(shown.targets, torch.from_numpy(several.train.targets))


def test_evaluation_shows_central_squares_in_the_given_order(task, tmp_path):
    setting = setting_of(task, tmp_path)
    ids = task.test.sample_ids
    samples = task.test.store.read(ids)
    crops = central_squares(samples.heights, samples.widths)
    pairs = zip(samples.payloads, crops, strict=True)
    wanted = np.stack([crop_view(data.tobytes(), crop, PX) for data, crop in pairs])
    shown = list(evaluation_batches(task.test, "central", CROPS, setting, seed=0))
    images = torch.cat([each.images for each in shown])
    difference = (images - normalize(torch.from_numpy(wanted))).abs()
    assert difference.max() <= 2 / 4 + 0.1  # Two gray levels, by the least deviation.
    assert difference.mean() < 0.02


@pytest.mark.parametrize("views", ["ten_crops", "ten_random"])
def test_ten_views_of_an_image_are_adjacent_and_always_the_same(task, tmp_path, views):
    setting = setting_of(task, tmp_path)  # 32 views at once: 3 images.
    shown = list(evaluation_batches(task.test, views, CROPS, setting, seed=0))
    assert [len(each.targets) for each in shown] == [3] * 8
    assert {each.images.shape for each in shown} == {(30, 3, PX, PX)}
    again = list(evaluation_batches(task.test, views, CROPS, setting, seed=0))
    assert fingerprints(shown) == fingerprints(again)
    if views == "ten_crops":
        five, mirrored = shown[0].images.view(3, 2, 5, 3, PX, PX).unbind(dim=1)
        assert torch.allclose(five.flip(-1), mirrored, atol=0.06)


def test_test_views_differ_from_training_views(task, tmp_path):
    setting = setting_of(task, tmp_path)
    (epoch,) = epochs_of(task.train, setting, 1)
    shown = evaluation_batches(task.train, "ten_random", CROPS, setting, seed=1)
    assert not set(fingerprints(shown)) & set(fingerprints(epoch))
