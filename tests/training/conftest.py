"""Build small fits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medtl.data.task import Task
from medtl.imaging.augmentation import Augmentation, AugmentationConfig
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.training.checkpoint import CheckpointHeader, describe_classifier
from medtl.training.distributed import ProcessGroup
from medtl.training.feature_cache.cache import Views
from medtl.training.run_folder import RunFolder
from medtl.training.schedule import ScheduleConfig, resolve_schedule
from medtl.training.trainer import Fit, FitConfig, FitData

SMALL = ScheduleConfig(
    name="gradual", head_epochs=2, unfrozen_epochs=4, steps=2, head_learning_rate=0.05, learning_rate=0.01
)


class SilentWatcher:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.notes: list[str] = []

    def note(self, label, text):
        self.notes.append(text)

    def stage(self, number, of, stage, plan):
        pass

    def progress(self, what, done, total):
        pass

    def epoch(self, row):
        self.rows.append(dict(row))


@pytest.fixture
def make_fit(make_prepared: Callable) -> Callable:
    """Return a builder of a seeded fit of a tiny network on a bright square against none."""

    def build(
        root: Path,
        schedule: ScheduleConfig = SMALL,
        backbone: str = "tiny",
        size: tuple[int, ...] = (32, 32),
        watcher: SilentWatcher | None = None,
        process_group: ProcessGroup | None = None,
        **config,
    ) -> Fit:
        fit_config = FitConfig(**{"batch_size": 8, **config})
        torch.manual_seed(fit_config.seed)
        classifier = Classifier(
            BACKBONES[backbone](), Task("binary", ("normal", "lesion")), fit_config.dropout
        )
        prepared, targets = make_prepared(24, size)
        augmentation_config = AugmentationConfig()
        augmentation = Augmentation(augmentation_config, size)
        train, val = np.arange(16), np.arange(16, 24)
        header = CheckpointHeader(
            **describe_classifier(classifier, fit_config.dropout),
            preprocessing=PreprocessingConfig(size=size),
            augmentation=augmentation_config,
            schedule=resolve_schedule(schedule, len(classifier.backbone.groups)),
        )
        data = FitData(
            Views(prepared, train, augmentation, 0, "key"),
            targets[train],
            Views(prepared, val, augmentation, 0, "key"),
            targets[val],
        )
        root.mkdir(parents=True, exist_ok=True)
        return Fit(
            classifier, data, header, fit_config, RunFolder(root), watcher or SilentWatcher(), process_group
        )

    return build
