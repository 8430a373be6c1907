"""Heads: they solve a pretext from the trunk's features. Their widths follow from the pretext."""

# Shapes: B batch, T tiles, P puzzles or pairs of one image, V views, D trunk width, E embedding
# width, K classes, Q pairs of neighbours.

import torch
from torch import Tensor, nn
from typing_extensions import assert_never

from pipeline.pretext.context import ContextConfig, neighbours
from pipeline.pretext.jigsaw import JigsawConfig, permutations_of
from pipeline.pretext.multitask import Task
from pipeline.pretext.rotation import RotationConfig
from pipeline.pretext.supervised import SupervisedConfig

_EMBED = 256
_HIDDEN = 1024


def build_head(task: Task, width: int) -> nn.Module:
    """Make the head of a task, with fresh weights, for a trunk of the given width.

    It maps features (B, V, D) and labels (B, L) to logits and targets.
    """
    match task:
        case JigsawConfig():
            return JigsawHead(task, torch.from_numpy(permutations_of(task)), width=width)
        case ContextConfig():
            return ContextHead(task, width=width)
        case RotationConfig():
            return RotationHead(task, width=width)
        case SupervisedConfig():
            return SupervisedHead(task, width=width)
        case _:
            assert_never(task)


class JigsawHead(nn.Module):
    """Classifies the permutation of shuffled tiles.

    A tile's embedding is a linear layer with BatchNorm and ReLU, shared by all tiles (Goyal et al.
    2019, section 3); permuted embeddings are concatenated and classified. Permuting embeddings,
    not pixels, gives P puzzles per pass of the trunk (Kolesnikov et al. 2019, section 4).
    """

    perms_KT: Tensor  # noqa: N815

    def __init__(self, config: JigsawConfig, perms_KT: Tensor, *, width: int) -> None:
        super().__init__()
        self.register_buffer("perms_KT", perms_KT, persistent=False)
        self.embed = _embedding(width)
        self.classify = _classifier(config.num_tiles, config.num_classes)
        self._puzzles, self._foreign = config.puzzles_per_image, config.max_foreign_tiles

    def forward(self, features_BTD: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Classify every image's tiles in the order of its labels, some of them exchanged.

        Args:
            features_BTD: Features of the tiles.
            labels_BL: Permutations (B, P), then the output of `draw_foreign`.

        Returns:
            Logits (B * P, K), whose row b * P + p answers labels_BP[b, p], and these labels.
        """
        embedded_BTE = _embedded(self.embed, features_BTD)
        labels_BP = labels_BL[:, : self._puzzles]
        order_BPT = self.perms_KT[labels_BP]
        rows = torch.arange(len(labels_BP), device=labels_BP.device)[:, None, None]
        shuffled_BPTE = embedded_BTE[rows, order_BPT]
        if self._foreign:
            foreign = labels_BL[:, self._puzzles :].view(-1, 2, self._puzzles, self._foreign)
            shuffled_BPTE = _exchange(shuffled_BPTE, embedded_BTE, foreign)
        return self.classify(shuffled_BPTE.flatten(2).flatten(0, 1)), labels_BP.flatten()


def _exchange(shuffled_BPTE: Tensor, embedded_BTE: Tensor, foreign_B2PF: Tensor) -> Tensor:
    """Put tiles of other images into puzzles, as drawn by `draw_foreign`."""
    tiles = embedded_BTE.shape[1]
    numbers = torch.arange(tiles, device=embedded_BTE.device)
    rows = torch.arange(len(embedded_BTE), device=embedded_BTE.device)[:, None]
    for place_BP, donor_BP in zip(
        *(part.unbind(2) for part in foreign_B2PF.unbind(1)), strict=True
    ):
        ahead_BP = donor_BP.div(tiles, rounding_mode="floor")
        donated_BPE = embedded_BTE[rows + ahead_BP, donor_BP - ahead_BP * tiles]
        here_BPT1 = (place_BP[..., None] == numbers)[..., None]
        shuffled_BPTE = torch.where(here_BPT1, donated_BPE[:, :, None], shuffled_BPTE)
    return shuffled_BPTE


class ContextHead(nn.Module):
    """Classifies the direction from the first to the second of two patches.

    Both patches share an embedding layer; the two embeddings are concatenated and classified
    (Doersch et al. 2015, figure 3, in the form of Kolesnikov et al. 2019 for any trunk).
    """

    pairs_Q3: Tensor  # noqa: N815

    def __init__(self, config: ContextConfig, *, width: int) -> None:
        super().__init__()
        pairs = torch.from_numpy(neighbours(config.grid).copy())
        self.register_buffer("pairs_Q3", pairs, persistent=False)
        self.embed = _embedding(width)
        self.classify = _classifier(2, config.num_classes)

    def forward(self, features_BTD: Tensor, labels_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Classify every pair of `neighbours` that the labels select.

        Returns:
            Logits (B * P, K) and directions (B * P,).
        """
        embedded_BTE = _embedded(self.embed, features_BTD)
        first_BP, second_BP, direction_BP = self.pairs_Q3[labels_BP].unbind(dim=2)
        rows = torch.arange(len(labels_BP), device=labels_BP.device)[:, None]
        pairs_BPE = torch.cat([embedded_BTE[rows, first_BP], embedded_BTE[rows, second_BP]], dim=2)
        return self.classify(pairs_BPE.flatten(0, 1)), direction_BP.flatten()


class RotationHead(nn.Module):
    """Classifies the rotation of a view with one linear layer (Gidaris et al. 2018)."""

    def __init__(self, config: RotationConfig, *, width: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, config.num_classes)

    def forward(self, features_BVD: Tensor, labels_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B * V, 4) and rotations (B * V,)."""
        return self.classify(features_BVD.flatten(0, 1)), labels_BV.flatten()


class SupervisedHead(nn.Module):
    """Classifies the image with one linear layer."""

    def __init__(self, config: SupervisedConfig, *, width: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, config.num_classes)

    def forward(self, features_B1D: Tensor, labels_B1: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and classes (B,), NO_CLASS for images without one."""
        return self.classify(features_B1D.flatten(0, 1)), labels_B1.flatten()


def _embedding(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, _EMBED), nn.BatchNorm1d(_EMBED), nn.ReLU(inplace=True))


def _embedded(embed: nn.Module, features_BTD: Tensor) -> Tensor:
    embedded: Tensor = embed(features_BTD.flatten(0, 1))
    return embedded.view(*features_BTD.shape[:2], -1)


def _classifier(num_embeddings: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_embeddings * _EMBED, _HIDDEN),
        nn.BatchNorm1d(_HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(_HIDDEN, num_classes),
    )
