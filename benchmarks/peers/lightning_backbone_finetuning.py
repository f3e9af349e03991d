"""Lightning's Trainer with its BackboneFinetuning callback.

python -m benchmarks.peers.lightning_backbone_finetuning JOB. The callback has one transition: from the head
to the whole backbone. So a phase that would unfreeze some groups unfreezes all of them here. Batch norm keeps
its gradient while the rest of the backbone is frozen, with no option to change that: the head's phase
backpropagates through the whole network, although its optimizer has only the head, as documented.
"""

from pathlib import Path

from lightning.pytorch.callbacks import BackboneFinetuning, Callback, ModelCheckpoint

from benchmarks.peers.common import Clock, Images, Trained, make_classifier, run_peer
from benchmarks.peers.job import Job
from benchmarks.peers.lightning_module import Transfer, fit


def train(job: Job, images: Images, folder: Path, clock: Clock) -> Trained:
    """Train the head and, from the second phase on, everything; or everything if nothing is frozen."""
    classifier = make_classifier(job, images)
    head_first = job.phases[0].groups == 0
    first = classifier.head.parameters() if head_first else classifier.parameters()
    callbacks = [thawing(job)] if head_first else []
    checkpoint = ModelCheckpoint(folder / "checkpoints", monitor="val_auroc", mode="max")
    return fit(classifier, Transfer(classifier, job, first), images, folder, clock, callbacks, checkpoint)


def thawing(job: Job) -> Callback:
    """Return the callback: it unfreezes after the head's phase, or never if that is the last one."""
    rate = job.phases[-1].rate
    return BackboneFinetuning(
        unfreeze_backbone_at_epoch=job.phases[0].epochs,
        lambda_func=lambda epoch: 1.0,
        backbone_initial_lr=rate,
        initial_denom_lr=1.0,
        should_align=False,
    )


if __name__ == "__main__":
    run_peer(train)
