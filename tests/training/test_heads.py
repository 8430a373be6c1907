import numpy as np
import pytest
import torch

from pipeline.pretext.context import ContextConfig, neighbours
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, draw_foreign
from pipeline.pretext.multitask import MultitaskConfig
from pipeline.pretext.rotation import RotationConfig
from training.models.heads import build_head
from training.models.pretext_model import PretextModel, build_model
from training.models.trunks import TrunkConfig

JIGSAW = JigsawConfig(
    name="jigsaw",
    crop_px=48,
    tile_px=12,
    num_permutations=20,
    puzzles_per_image=3,
    max_foreign_tiles=2,
)
CONTEXT = ContextConfig(name="context", grid=3, patch_px=16, gap_px=4, jitter_px=1, min_pixels=3000)
ROTATION = RotationConfig(name="rotation", crop_px=24)


def bare(task, width):
    """A head of identity layers, so that its logits are its input."""
    head = build_head(task, width=width).eval()
    head.embed = torch.nn.Identity()
    head.classify = torch.nn.Identity()
    return head


def test_the_head_sees_the_donors_tile_at_the_drawn_place():
    head = bare(JIGSAW, width=6)
    features = torch.arange(4 * 9 * 6.0).view(4, 9, 6)
    mates = np.array([1, -1, 1, -1])
    foreign = draw_foreign(JIGSAW, Draws(1, 0, np.arange(4)), mates)
    permutations = np.random.default_rng(0).integers(0, 20, (4, 3))
    labels = torch.from_numpy(np.concatenate([permutations, foreign], axis=1))
    seen, targets = head(features, labels)
    assert torch.equal(targets, torch.from_numpy(permutations).flatten())
    places, donors = foreign.reshape(4, 2, 3, 2).swapaxes(0, 1)
    assert (places >= 0).any()
    for b in range(4):
        for p in range(3):
            expected = features[b, head.perms_KT[permutations[b, p]]].clone()
            for place, donor in zip(places[b, p], donors[b, p], strict=True):
                if place >= 0:
                    expected[place] = features[b + mates[b], donor % 9]
            assert torch.equal(seen[3 * b + p].view(9, 6), expected)


def test_a_pair_is_seen_first_patch_first_and_its_target_is_the_direction():
    features = torch.arange(2 * 9 * 5.0).view(2, 9, 5)
    labels = torch.tensor([[0, 7, 30], [1, 11, 25]])
    seen, targets = bare(CONTEXT, width=5)(features, labels)
    for b in range(2):
        for p in range(3):
            first, second, direction = neighbours(3)[labels[b, p]]
            expected = torch.cat([features[b, first], features[b, second]])
            assert torch.equal(seen[3 * b + p], expected)
            assert targets[3 * b + p] == direction


def test_each_turn_is_asked_of_its_own_view():
    features = torch.arange(2 * 4 * 5.0).view(2, 4, 5)
    seen, targets = bare(ROTATION, width=5)(features, torch.arange(4).repeat(2, 1))
    assert torch.equal(seen, features.flatten(0, 1))
    assert targets.tolist() == [0, 1, 2, 3] * 2


def test_several_tasks_answer_as_each_alone_on_the_same_trunk():
    torch.manual_seed(0)
    tasks = (JIGSAW, CONTEXT, ROTATION)
    both = MultitaskConfig(name="multitask", tasks=tasks, weights=(1, 1, 1))
    model = build_model(both, TrunkConfig(name="small")).eval()
    rng = np.random.default_rng(0)
    views, labels = [], []
    for task in tasks:
        size = (4, task.tiles.num_tiles, task.tiles.tile_px, task.tiles.tile_px, 3)
        views.append(torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8)))
    foreign = draw_foreign(JIGSAW, Draws(0, 0, np.arange(4)), np.array([1, -1, 1, -1]))
    labels = [
        torch.from_numpy(np.concatenate([rng.integers(0, 20, (4, 3)), foreign], axis=1)),
        torch.from_numpy(rng.integers(0, len(neighbours(3)), (4, CONTEXT.num_answers))),
        torch.arange(4).repeat(4, 1),
    ]
    together = model(torch.cat([part.flatten(1) for part in views], 1), torch.cat(labels, 1))
    assert [answer.logits.shape[1] for answer in together] == [20, 8, 4]
    for number, task in enumerate(tasks):
        alone = PretextModel(task, model.trunk)
        alone.heads[0] = model.heads[number]
        (answer,) = alone.eval()(views[number], labels[number])
        assert torch.equal(answer.targets, together[number].targets)
        # Convolutions of other batch sizes may sum in another order.
        assert torch.allclose(answer.logits, together[number].logits, atol=1e-5)


@pytest.mark.parametrize(("task", "columns"), [(JIGSAW, 15), (CONTEXT, 8), (ROTATION, 4)])
def test_labels_have_the_columns_that_the_task_says(task, columns):
    assert task.num_answers == columns
