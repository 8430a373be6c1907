"""Heads: what a pretext asks of the trunk's output. Widths follow from the pretext."""

# Shapes: B batch, T tiles, P puzzles of one image, D trunk width, E embedding width, K classes.

import torch
from torch import Tensor, nn

from pipeline.pretext.jigsaw import JigsawConfig

_EMBED = 256
_HIDDEN = 1024


class JigsawHead(nn.Module):
    """Name the permutation of shuffled tiles.

    A tile's embedding is a linear layer with BatchNorm and ReLU, shared by all tiles (Goyal et al.
    2019, section 3); permuted embeddings are concatenated and classified. Permuting embeddings,
    not pixels, asks P puzzles for one pass of the trunk (Kolesnikov et al. 2019, section 4).
    """

    perms_KT: Tensor  # noqa: N815

    def __init__(self, config: JigsawConfig, perms_KT: Tensor, *, width: int) -> None:
        super().__init__()
        self.register_buffer("perms_KT", perms_KT, persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(width, _EMBED), nn.BatchNorm1d(_EMBED), nn.ReLU(inplace=True)
        )
        self.classify = nn.Sequential(
            nn.Linear(config.num_tiles * _EMBED, _HIDDEN),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, config.num_classes),
        )

    def forward(self, features_BTD: Tensor, labels_BP: Tensor) -> Tensor:
        """Show every image's tiles in the order of its labels.

        Returns:
            Logits (B * P, K); row b * P + p answers labels_BP[b, p].
        """
        batch, tiles, _ = features_BTD.shape
        embedded_BTE = self.embed(features_BTD.flatten(0, 1)).unflatten(0, (batch, tiles))
        order_BPT = self.perms_KT[labels_BP]
        rows = torch.arange(batch, device=labels_BP.device)[:, None, None]
        shuffled_BPTE = embedded_BTE[rows, order_BPT]
        logits: Tensor = self.classify(shuffled_BPTE.flatten(2).flatten(0, 1))
        return logits
