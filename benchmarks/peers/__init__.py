"""Ways to train the very same network on the very same images: one file a peer, each a process of its own.

job.py says what a peer is given and gives back; common.py holds what all of them share, so that they differ
in their loop alone. docs/benchmarks.md says what is fair about it.
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
