"""RECIPE -> its stages: what each trains, caches and costs, before anything is trained."""

from collections.abc import Sequence
from typing import Any

from medtl.config import RunConfig
from medtl.data.task import Task
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.models.costs import StepCost, step_costs
from medtl.training.batches import Order
from medtl.training.feature_cache.plan import CachePlan, plan_cache
from medtl.training.schedule import Pace, Stage, entry_step, resolve_schedule, unfreeze

BACKWARD = 2  # a backward pass has two products for each one of the forward pass: by input and by weight


def plan_stages(config: RunConfig, samples: int | None = None) -> list[dict[str, Any]]:
    """Return plain data about each stage of a recipe on a number of training images.

    stage: its settings. groups: the unfrozen ones, from the stem. rates: learning rates of the head, the
    topmost and the lowest group. boundary and kept_bytes: where the frozen prefix ends, and the size of one
    image's activations there in one view; cached: whether they are cached, and the reason. Multiply-adds are
    those of one training image in one epoch: prefix is the frozen part, forward, which the cache saves;
    trained is the rest, forward and backward, where a backward pass counts twice the forward one. Those of
    all epochs are of all images: without the cache, and as planned, with the passes that fill it.

    The number of images matters for the disk budget of the cache and for stages with a number of steps;
    without it, there is one image, everything fits in the cache and a stage lasts for all of its epochs.
    """
    classifier = build_untrained(config)
    shape = (1, config.preprocessing.channels, *config.preprocessing.size)
    stages = resolve_schedule(config.schedule, len(classifier.backbone.groups))
    epochs = [stage.epochs for stage in stages]
    if samples is not None:
        per_step = config.fit.batch_size * config.fit.accumulate
        steps = Order(config.fit.seed, samples, None, per_step).steps
        epochs = [Pace(stage, steps).epochs for stage in stages]
    budget = config.fit.cache_gb * 1e9
    plans = plan_cache(classifier, stages, shape, samples or 1, budget, epochs=epochs)
    costs = step_costs(classifier, shape)
    return [
        _plan_stage(classifier, costs, stage, count, plan, samples or 1)
        for stage, count, plan in zip(stages, epochs, plans, strict=True)
    ]


def build_untrained(config: RunConfig) -> Classifier:
    """Return the recipe's classifier without weights, for the classes that it names, or two."""
    backbone = BACKBONES[config.backbone.name](weights=None, in_channels=config.preprocessing.channels)
    classes = config.task.classes or ("negative", "positive")
    task = Task(config.task.kind or "binary", classes)
    return Classifier(backbone, task, config.fit.dropout).to("meta")


def _plan_stage(
    classifier: Classifier, costs: Sequence[StepCost], stage: Stage, epochs: int, plan: CachePlan, images: int
) -> dict[str, Any]:
    step = entry_step(classifier, stage)
    prefix = sum(cost.multiply_adds for cost in costs[:step])
    trained = (1 + BACKWARD) * sum(cost.multiply_adds for cost in costs[step:])
    passes = min(stage.views, epochs) if plan.cached else epochs  # of the frozen prefix
    names = classifier.backbone.layer_groups
    unfreeze(classifier, stage)
    lowest = stage.learning_rate * stage.layer_decay ** (stage.groups - 1)
    rates = (stage.head_learning_rate, stage.learning_rate, lowest)
    return {
        "stage": stage.model_dump(mode="json"),
        "groups": names[len(names) - stage.groups :],
        "trained_parameters": sum(p.numel() for p in classifier.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "rates": rates if stage.groups else rates[:1],
        "epochs": epochs,
        "boundary": costs[step - 1].name if step else "",
        "kept_bytes": costs[step - 1].output_bytes if step else 0,
        "cached": plan.cached,
        "reason": plan.reason,
        "prefix_multiply_adds": prefix,
        "trained_multiply_adds": trained,
        "all_epochs_multiply_adds": images * epochs * (prefix + trained),
        "cached_all_epochs_multiply_adds": images * (passes * prefix + epochs * trained),
    }
