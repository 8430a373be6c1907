import pytest

from pipeline.config import ConfigError, parse
from pipeline.pretext.multitask import MultitaskConfig, weights_of
from pipeline.pretext.rotation import RotationConfig

BOTH = [{"name": "rotation"}, {"name": "context"}]


def parsed(**changes):
    raw = {"name": "multitask", "tasks": BOTH, "weights": [1, 0.5], **changes}
    return parse(MultitaskConfig, raw, "both")


def test_tasks_and_weights_are_read_in_order():
    config = parsed()
    assert [task.name for task in config.tasks] == ["rotation", "context"]
    assert weights_of(config) == (1, 0.5)
    assert config.chance == (1 / 4 + 1 / 8) / 2
    assert weights_of(RotationConfig(name="rotation")) == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": [1]},
            "both: weights (=[1.0]) must be 2, one for each task.",
        ),
        (
            {"tasks": [BOTH[0], BOTH[0]]},
            "both: tasks (=['rotation', 'rotation']) must be of different kinds; leave one out.",
        ),
        ({"weights": [1, 0]}, "both: weights.1 (=0): Input should be greater than 0"),
    ],
)
def test_tasks_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        parsed(**changes)
    assert str(caught.value) == message
