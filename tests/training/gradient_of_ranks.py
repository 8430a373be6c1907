"""Take one training step and write what each rank has then; started plainly or by torchrun.

python gradient_of_ranks.py SHARDS OUT
"""

import sys
from pathlib import Path

import torch

from pipeline.config import parse
from pipeline.dali.graph import GraphOptions
from pipeline.loading.loader import open_loader
from pipeline.loading.mixture import RankInfo
from training.ddp import joined
from training.models.pretext_model import HeadOutput
from training.pretrain import _Clock, _step, _TrainState
from training.run import RunConfig, pretraining_of

CONFIG = {
    "seed": 0,
    "trunk": {"name": "small"},
    "order": {"global_batch": 12, "num_lanes": 3, "window": 20},  # 2 ranks get 8 and 4.
    "pretext": {
        "name": "jigsaw",
        "crop_px": 33,
        "tile_px": 10,
        "channel_shift_px": 1,
        "num_permutations": 7,
        "puzzles_per_image": 2,
    },
    "optim": {"name": "sgd", "lr": 0.1},
    "train": {"epochs": 1, "precision": "fp32"},
}


class MeanColours(torch.nn.Module):
    """Answer by a linear layer on the mean colour of every tile: no BatchNorm, which sees ranks."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(9 * 3, 7).double()

    def forward(self, views, labels):
        means = views.double().mean(dim=(2, 3)).flatten(1) / 255
        logits = self.linear(means).repeat_interleave(labels.shape[1], dim=0)
        return [HeadOutput(logits, labels.flatten())]


def main(shards, out):
    run = pretraining_of(
        parse(RunConfig, {**CONFIG, "out": out, "data": {"manifest": shards}}, "config")
    )
    with joined() as ranks:
        rank_info = RankInfo(ranks.rank, ranks.world_size)
        loader = open_loader(
            run.data, run.order, run.pretext, seed=0, rank_info=rank_info, ledger=None
        )
        options = GraphOptions(
            max_batch=loader.max_batch, num_threads=1, device_id=None, prefetch=1
        )
        batch = next(loader.batches(options))

        torch.manual_seed(ranks.rank)  # wrap() must give every rank the first one's weights.
        model = MeanColours()
        optimizer = torch.optim.SGD(model.parameters(), lr=1)
        clock = _Clock(run.train, ranks, loader.steps_per_epoch)
        is_asked = ranks.rank == ranks.world_size - 1
        job = _TrainState(run, ranks, loader, model, optimizer, clock, lambda: is_asked)
        result = _step(job, ranks.wrap(model), batch, 0.1)

        images = ranks.sum(torch.tensor([float(len(batch.sample_ids)), 1.0]))
        gathered = ranks.gather(torch.arange(ranks.rank + 1))
        ranks.barrier()
        left = {
            "weight": model.linear.weight.detach(),
            "gradient": model.linear.weight.grad,
            "images": len(batch.sample_ids),
            "sum": images,
            "gathered": [part.tolist() for part in gathered],
            "must_stop": result.must_stop,
        }
        torch.save(left, out / f"{ranks.rank}_of_{ranks.world_size}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
