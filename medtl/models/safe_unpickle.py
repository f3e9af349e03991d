"""Take the named tensors out of a pickled module, and run nothing of it.

A whole module that torch.save wrote names classes and functions to be called when it is read. Here every one
of them is replaced by a stand-in that does nothing, except for the few that put a tensor together. What is
then left of the module is its parameters, buffers and children. torch's own weights_only refuses modules in
the format of before torch 1.6. `python -m medtl.models.safe_unpickle FILE OUT` writes them as safetensors;
the weights store runs it in a process of its own.
"""

import collections
import pickle
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# All that is ever called while reading. torch resolves storages by itself.
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


class NotAModuleError(ValueError):
    """The file holds something other than a pickled module: `args[0]` says what."""


class StandIn:
    """Stands for any class or function: takes what it is given, keeps its state, and does nothing."""

    dump_patches = False  # torch asks a module's class for it in files of before 1.6

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, *_: Any) -> None:
        pass

    append = extend = add = __setitem__


class HarmlessUnpickler(pickle.Unpickler):
    """Reads a pickle whose names all mean StandIn, except for ALLOWED."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the allowed function, or StandIn."""
        return ALLOWED.get((module, name), StandIn)


def read_module_tensors(path: Path) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a pickled module under their names in a state dict.

    Raises NotAModuleError.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                # torch.load would hand it to another reader
                raise NotAModuleError("it is a TorchScript archive")
    # what torch.load takes in the place of the module `pickle`
    reader = SimpleNamespace(__name__="harmless_pickle", Unpickler=HarmlessUnpickler, load=_load_harmless)
    root = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    state = getattr(root, "state", None)
    if state is None or "_modules" not in state:
        raise NotAModuleError("it is no pickled module")
    return dict(_named_tensors(state, ""))


def _load_harmless(file: Any, **options: Any) -> Any:
    return HarmlessUnpickler(file, **options).load()


def _named_tensors(state: dict[str, Any], prefix: str) -> list[tuple[str, Tensor]]:
    named = {**_mapping(state, "_parameters"), **_mapping(state, "_buffers")}
    passing = state.get("_non_persistent_buffers_set")
    for name in passing if isinstance(passing, set) else ():
        named.pop(name, None)
    tensors = [(prefix + name, value) for name, value in named.items() if isinstance(value, Tensor)]
    for name, child in _mapping(state, "_modules").items():
        if isinstance(child, StandIn):
            tensors += _named_tensors(getattr(child, "state", {}), f"{prefix}{name}.")
    return tensors


def _mapping(state: dict[str, Any], key: str) -> dict[str, Any]:
    value = state.get(key)
    return value if isinstance(value, dict) else {}


def main() -> None:
    """Write the tensors of the module in argv[1] to argv[2], or say why not and exit with 1."""
    source, target = map(Path, sys.argv[1:3])
    try:
        tensors = read_module_tensors(source)
    except NotAModuleError as error:
        sys.exit(str(error))
    except Exception as error:  # anything that a damaged or hostile file provokes; its text is not repeated
        sys.exit(f"reading it ends in {type(error).__name__}")
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, target)


if __name__ == "__main__":
    main()
