"""Ways to train the same network on the same images: one file per peer, each a process of its own.

job.py describes what a peer receives and returns; common.py holds what all of them share, so that they differ
only in their loop. docs/benchmarks.md explains what makes it fair.
"""

from typing import NamedTuple


class Peer(NamedTuple):
    """A line of the tables: its module below benchmarks.peers, and the packages it needs."""

    module: str
    packages: tuple[str, ...] = ()


PEERS: dict[str, Peer] = {
    "medtl": Peer("medtl_front_door"),
    "plain PyTorch": Peer("plain_torch"),
    "Lightning BackboneFinetuning": Peer("lightning_backbone_finetuning", ("lightning",)),
    "finetuning-scheduler": Peer("lightning_finetuning_scheduler", ("lightning", "finetuning_scheduler")),
    "MONAI and Ignite": Peer("monai_ignite", ("ignite",)),
}
