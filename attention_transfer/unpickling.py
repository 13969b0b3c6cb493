"""Reading a pickled checkpoint without running any code in it.

`torch.load(weights_only=True)` builds only tensors and plain data, and so refuses what most training scripts save
beside the weights: argparse settings, a best accuracy as a NumPy number, a path. These few types are read here as well,
each as a stand-in that only stores its arguments: NumPy's own functions, for one, trust the sizes and flags in a file.
Everything else is refused before it is called.
"""

from __future__ import annotations

import argparse
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch

_NUMBERS = re.compile(r"[<>=|]?(\?|b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6})")
_MOST_PARTS = 64
_lock = threading.Lock()


class Settings(argparse.Namespace):
    """Stands for argparse.Namespace and types.SimpleNamespace: attributes, but no special methods."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or any(not isinstance(key, str) or key.startswith("__") for key in state):
            raise UnpicklingError("the attributes of a Namespace are malformed")
        self.__dict__.update(state)


class NumberType:
    """Stands for numpy.dtype: numbers and text of a known size, but neither objects nor records.

    Args:
        name: of the type.
        align: ignored.
        copy: ignored.
    """

    def __init__(self, name: object, align: object = False, copy: object = False) -> None:
        if not isinstance(name, str) or _NUMBERS.fullmatch(name) is None:
            raise UnpicklingError(f"numpy.dtype({name!r}) is not a type of plain numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise UnpicklingError("a numpy.dtype is malformed")
        if any(part is not None for part in state[2:5]):
            raise UnpicklingError("a numpy.dtype of records is not plain numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class NumberArray:
    """Stands for numpy.ndarray; the numbers are in `array`."""

    array: npt.NDArray[Any]

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnpicklingError("a numpy.ndarray is malformed")
        _, shape, kind, is_fortran, data = state
        sizes = shape if isinstance(shape, tuple) and len(shape) <= _MOST_PARTS else (None,)
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise UnpicklingError("the shape of a numpy.ndarray is malformed")
        numbers = _numbers(kind, data)
        self.array = numbers.reshape(shape, order="F" if is_fortran else "C")


def _numbers(kind: object, data: object) -> npt.NDArray[Any]:
    if not isinstance(kind, NumberType) or not isinstance(data, bytes):
        raise UnpicklingError("the contents of a NumPy number or array are malformed")
    if not kind.dtype.itemsize:
        return np.zeros(1, kind.dtype)
    return np.frombuffer(data, kind.dtype)


def number(kind: object, data: object) -> Any:
    """Stands for numpy.core.multiarray.scalar: a plain Python number (or text) out of its bytes."""
    numbers = _numbers(kind, data)
    if numbers.size != 1:
        raise UnpicklingError("a NumPy number is malformed")
    return numbers.item()


def empty_array(kind: object, shape: object, code: object) -> NumberArray:
    """Stands for numpy.core.multiarray._reconstruct; the state that follows fills the array.

    Args:
        kind: the stand-in of numpy.ndarray.
        shape: ignored.
        code: ignored.
    """
    if kind is not NumberArray:
        raise UnpicklingError("an array of another class than numpy.ndarray is not read")
    return NumberArray()


def parts(*arguments: object) -> tuple[object, ...]:
    """Stands for datetime's types, whose values are not needed."""
    return arguments


def path_text(*arguments: object) -> str:
    """Stands for pathlib's types, as text: a Windows path cannot be created on other systems."""
    return str(PurePosixPath(*(part for part in arguments if isinstance(part, str))))


def plain_dict(*factory: object) -> dict[Any, Any]:
    """Stands for collections.defaultdict: a dict that calls nothing for a missing key."""
    return {}


def no_bytes() -> bytes:
    """Stands for builtins.bytes, which a pickle calls only for empty bytes."""
    return b""


def only_named(*arguments: object) -> NoReturn:
    """Stands for a type that is mentioned, as in defaultdict(list)."""
    raise UnpicklingError("a built-in type is called")


class Allowed(NamedTuple):
    """Allowed types: their names in a pickle, the stand-in that is called instead, and why that is harmless."""

    names: tuple[str, ...]
    stand_in: Callable[..., Any]
    reason: str


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_DATETIME = ("datetime", "date", "time", "timedelta", "timezone")
_PATHLIB = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")

ALLOWED = (
    Allowed(
        ("argparse.Namespace", "types.SimpleNamespace"),
        Settings,
        "settings of a script; attributes, never called",
    ),
    Allowed(tuple(f"{module}.scalar" for module in _NUMPY), number, "an accuracy; bytes of a size that is checked"),
    Allowed(("numpy.dtype",), NumberType, "plain numbers alone; what a file says of flags and sizes is not used"),
    Allowed(("numpy.ndarray",), NumberArray, "filled from bytes whose number must agree with the shape"),
    Allowed(tuple(f"{module}._reconstruct" for module in _NUMPY), empty_array, "makes an empty stand-in"),
    Allowed(("collections.defaultdict",), plain_dict, "a dict; its factory is dropped"),
    Allowed(
        tuple(f"builtins.{name}" for name in ("int", "float", "str", "bool", "list", "dict", "tuple")),
        only_named,
        "named as a factory; refuses to be called",
    ),
    Allowed(("builtins.bytes",), no_bytes, "empty bytes; of any others there is no need"),
    Allowed(("builtins.frozenset",), frozenset, "a set"),
    Allowed(tuple(f"datetime.{name}" for name in _DATETIME), parts, "kept as its bytes"),
    Allowed(
        tuple(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHLIB),
        path_text,
        "kept as text; no file is touched",
    ),
    Allowed(
        (
            "easydict.EasyDict",
            "yacs.config.CfgNode",
            "addict.addict.Dict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "lightning.fabric.utilities.data.AttributeDict",
        ),
        OrderedDict,
        "dicts of settings, whose libraries need not be there",
    ),
    Allowed(("torch.torch_version.TorchVersion",), str, "text"),
)
"""All types read beyond those of torch.load(weights_only=True); any other is refused."""


def load_restricted(file: BinaryIO) -> Any:
    """The content of a file written by torch.save, on the CPU: tensors, plain data and `ALLOWED`; no code in it is run.

    Raises:
        UnpicklingError, RuntimeError, EOFError, OSError, ...: it holds anything else, or is corrupt.
    """
    with _lock, _allowed(), warnings.catch_warnings():
        # each precedes an error with more detail
        warnings.filterwarnings("ignore", message="Detected pickle protocol|.*looks like a TorchScript archive")
        return torch.load(file, map_location="cpu", weights_only=True)


def allowed_names() -> frozenset[str]:
    """The names of all types in `ALLOWED`."""
    return frozenset(name for entry in ALLOWED for name in entry.names)


@contextmanager
def _allowed() -> Iterator[None]:
    """Add our types to torch's allowed ones inside the `with`; ours replace the user's of the same name."""
    before, ours = torch.serialization.get_safe_globals(), allowed_names()
    theirs = [entry for entry in before if _name_of(entry) not in ours]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(theirs)
    torch.serialization.add_safe_globals([(entry.stand_in, name) for entry in ALLOWED for name in entry.names])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _name_of(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
