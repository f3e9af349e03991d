"""Write an exported model as a MONAI bundle, which MONAI can describe and run."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medtl.core import __version__
from medtl.core.files import csv_line, replacing, write_json, write_text
from medtl.errors import CheckpointError
from medtl.inference.contract import USE
from medtl.inference.export import save_through_memory, write_program
from medtl.training.checkpoint import Checkpoint


def write_bundle(out: Path, checkpoint: Checkpoint, contract: dict[str, Any], card: str) -> None:
    """Write configs, models, docs and LICENSE below `out`. Raises CheckpointError; OutputError."""
    metadata = _metadata(checkpoint, contract)
    _refuse_expressions(metadata)
    program = write_program(out / "models/model.pt2", checkpoint, alone=True)
    # The file that monai.bundle.load looks for, and loads without running code.
    with replacing(out / "models/model.pt") as temporary:
        save_through_memory(lambda file: torch.save(dict(program.state_dict), file), temporary)
    write_text(out / "docs/README.md", card)
    parts = "\n".join(f"{part}: {licence}" for part, licence in contract["licences"].items())
    write_text(out / "LICENSE", f"The parts of this model have these licences:\n\n{parts}\n\n{USE}\n")
    write_json(out / "configs/inference.json", _inference(contract))
    write_json(out / "configs/metadata.json", metadata)


def _refuse_expressions(content: Any) -> None:
    """Refuse names that MONAI would run, look up or instantiate: it parses metadata as it does configs.

    Classes are the user's, licences the checkpoint's. Raises CheckpointError export-unsupported.
    """
    if isinstance(content, dict):
        content = [*content.keys(), *content.values()]
    if isinstance(content, list | tuple):
        for part in content:
            _refuse_expressions(part)
    elif isinstance(content, str) and re.match(r"[$@%]|_\w+_$", content):
        reason = f"a MONAI bundle would run {content!r} as code"
        raise CheckpointError("export-unsupported", reason, fix="rename the class, or export --to onnx")


def _metadata(checkpoint: Checkpoint, contract: dict[str, Any]) -> dict[str, Any]:
    classes, config = checkpoint.task.classes, checkpoint.preprocessing
    plain = {"dtype": "float32", "value_range": [0, 1], "is_patch_data": False}
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by medtl {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {},
        "name": f"{' against '.join(classes)} by {contract['backbone']}",
        "task": f"{contract['task']['kind']} classification",
        "description": f"Classifier trained with medtl, of prepared images. {USE}",
        "authors": "the owner of the training data",
        "copyright": "see LICENSE",
        "intended_use": USE,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": ", ".join(config.modalities or ()) or "any",
                    "num_channels": config.channels,
                    "spatial_shape": list(config.size),
                    "channel_def": {str(channel): "image" for channel in range(config.channels)},
                    **plain,
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": len(classes),
                    "spatial_shape": [1, len(classes)],
                    "channel_def": {str(place): name for place, name in enumerate(classes)},
                    **plain,
                }
            },
        },
        "medtl": contract,
    }


def _inference(contract: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that turns prepared images (.npy, channels first) into a table."""
    return {
        "imports": ["$import glob", "$import numpy", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_file": "$@bundle_root + '/probabilities.csv'",
        "device": "$torch.device('cpu')",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.npy'))]",
        "network_def": "$torch.export.unflatten(torch.export.load(@bundle_root + '/models/model.pt2'))",
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "NumpyReader", "image_only": True},
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32", "track_meta": False},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "batches": "$[@inferer(batch['image'].to(@device), @network).detach() for batch in @dataloader]",
        "probabilities": "$torch.cat(@batches).cpu().numpy()",
        "header": csv_line(contract["task"]["classes"]).rstrip("\n"),
        "run": ["$numpy.savetxt(@output_file, @probabilities, delimiter=',', header=@header, comments='')"],
    }
