"""Trunk and heads as one module, the unit that DDP wraps."""

from typing import NamedTuple

from torch import Tensor, nn

from pipeline.pretext.multitask import PretextConfig, tasks_of
from pipeline.pretext.normalize import see, split_labels, split_views
from training.models.heads import build_head
from training.models.trunks import Trunk, TrunkConfig, build_trunk


class HeadOutput(NamedTuple):
    """Output of a task's head; a tuple because DDP searches a module's output for tensors."""

    logits: Tensor
    """(N, K), N answers over all images of the batch."""
    targets: Tensor
    """int64 (N,)."""


class PretextModel(nn.Module):
    """A trunk and one head per task of the pretext."""

    def __init__(self, pretext: PretextConfig, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.tasks = tasks_of(pretext)
        self.heads = nn.ModuleList(build_head(task, trunk.width) for task in self.tasks)
        self._pretext = pretext

    def forward(self, views: Tensor, labels: Tensor) -> list[HeadOutput]:
        """Solve each task.

        Args:
            views: uint8, as the graph returns them.
            labels: int64 (B, L).
        """
        outputs = []
        views_of, labels_of = split_views(self._pretext, views), split_labels(self._pretext, labels)
        for task, head, part, asked in zip(
            self.tasks, self.heads, views_of, labels_of, strict=True
        ):
            features = self.trunk(see(task, part)).unflatten(0, (len(views), -1))
            outputs.append(HeadOutput(*head(features, asked)))
        return outputs


def build_model(pretext: PretextConfig, trunk: TrunkConfig) -> PretextModel:
    """Make trunk and heads with fresh weights from torch's global generator."""
    return PretextModel(pretext, build_trunk(trunk, view_px=largest_view(pretext)))


def largest_view(pretext: PretextConfig) -> int:
    """Return the side of the largest view in px, for which a ViT has its positions."""
    return max(task.tiles.tile_px for task in tasks_of(pretext))
