"""Inspecting a refused pickle file without running it, and the command that resaves its weights.

The pickle is read with a stand-in for every class and function that it names: a stand-in stores its arguments and does
nothing, so that the file's structure is visible but no code of it runs.
"""

from __future__ import annotations

import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

from attention_transfer.unpickling import allowed_names
from attention_transfer.weight_keys import rank_of

_MAGIC = 0x1950A86A20F9469CFC6C
"""The magic number at the start of torch.save's files, before they were zip archives."""
_DEPTH = 3
_NAMED = 3
_PLAIN = re.compile(
    r"torch\._utils\._rebuild\w+|torch\._tensor\._rebuild\w+|torch\.\w*Storage|torch\.storage\.\w+|torch\.\w*Tensor|"
    r"torch\.(Size|device|[a-z]+\d+\w*|bool)|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout|"
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|bytearray|complex)"
)
"""Names that torch.load(weights_only=True) allows by default."""
_COMMANDS = re.compile(
    r"(os|posix|nt|subprocess|sys|shutil|socket|runpy|importlib|pty|ctypes|code|marshal|webbrowser|pickle|_pickle|pip|"
    r"asyncio|multiprocessing)\..*|builtins\.(eval|exec|compile|open|__import__|breakpoint|input|execfile)"
)
"""Names that no weights need, and malicious files call."""


class _Inert(dict[Any, Any]):
    """A stand-in for any class or function: stores state and items, and calls nothing."""

    path = ""
    state: Any = None
    arguments: tuple[Any, ...] = ()

    def __new__(cls, *arguments: Any, **named: Any) -> _Inert:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Items of a list."""

    def extend(self, items: Any) -> None:
        """Items of a list."""

    def add(self, item: Any) -> None:
        """Items of a set."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self.names: dict[str, type[_Inert]] = {}

    def find_class(self, module: str, name: str) -> type[_Inert]:
        path = f"{'builtins' if module == '__builtin__' else module}.{name}"
        return self.names.setdefault(path, type("_Inert", (_Inert,), {"path": path}))

    def persistent_load(self, pid: Any) -> Any:
        # torch.save once wrote a module's class with its source; everything else is the storage of a tensor
        return pid[1] if isinstance(pid, tuple) and pid[:1] == ("module",) else None


class Held(NamedTuple):
    """The content of a pickled file.

    Attributes:
        content: dicts, lists, numbers and text as they are, everything else as stand-ins.
        names: every class and function that reading it would import, in the order of the file.
        opened_by: the Python expression that reads it, with the file's path as {path!r}.
    """

    content: Any
    names: tuple[str, ...]
    opened_by: str

    @property
    def foreign(self) -> list[str]:
        """The names that the restricted reader does not allow."""
        allowed = allowed_names()
        return [name for name in self.names if name not in allowed and not _PLAIN.fullmatch(name)]


def look_into(file: BinaryIO) -> Held | None:
    """Inspect a pickled file without running it; None if it cannot be parsed."""
    try:
        return _look(file)
    except Exception:  # a corrupt or malicious pickle may raise anything
        return None


def _look(file: BinaryIO) -> Held | None:
    file.seek(0)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return Held(None, (), "torch.jit.load({path!r})")
            data = next(name for name in names if name.rpartition("/")[2] == "data.pkl")
            reader = _Reader(BytesIO(archive.read(data)))
            return Held(reader.load(), tuple(reader.names), _TORCH)
    file.seek(0)
    if tarfile.is_tarfile(file):
        with tarfile.open(fileobj=file) as members:
            inside = members.extractfile("pickle")
            assert inside is not None
            reader = _Reader(inside)
            return Held(reader.load(), tuple(reader.names), _TORCH)
    file.seek(0)
    reader = _Reader(file)
    content = reader.load()
    if content != _MAGIC:
        return Held(content, tuple(reader.names), "pickle.load(open({path!r}, 'rb'))")
    for _ in range(3):  # the version, the machine, and then the saved object
        reader = _Reader(file)
        content = reader.load()
    return Held(content, tuple(reader.names), _TORCH)


_TORCH = "torch.load({path!r}, weights_only=False)"


def resaving(held: Held, path: str) -> str | None:
    """The line of Python that saves the weights of a file as a plain state_dict; None if it has no visible weights."""
    opened = held.opened_by.format(path=path)
    is_script = held.opened_by.startswith("torch.jit")
    weights = f"{opened}.state_dict()" if is_script else _weights_in(held.content, opened)
    imports = "import pickle, torch" if opened.startswith("pickle") else "import torch"
    return None if weights is None else f"{imports}; torch.save({weights}, 'weights.pth')"


def _weights_in(content: Any, expression: str) -> str | None:
    found = _places(content, expression, ())
    return min(found, key=lambda place: place[0])[1] if found else None


def _places(content: Any, expression: str, path: tuple[str, ...]) -> list[tuple[int, str]]:
    rank = rank_of(path)
    if _is_module(content):
        return [(rank, f"{expression}.state_dict()")]
    if not isinstance(content, Mapping) or len(path) > _DEPTH:
        return []
    tensors = [key for key, value in content.items() if isinstance(key, str) and _is_tensor(value)]
    if len(tensors) == len(content) > 0:
        return [(rank, expression if _is_dict(content) else f"dict({expression})")]
    inside = [
        place
        for key, value in content.items()
        if isinstance(key, str)
        for place in _places(value, f"{expression}[{key!r}]", (*path, key))
    ]
    if inside or not tensors:
        return inside
    return [(rank, f"{{k: v for k, v in {expression}.items() if isinstance(v, torch.Tensor)}}")]


def _is_module(content: Any) -> bool:
    return isinstance(content, _Inert) and isinstance(content.state, dict) and "_modules" in content.state


def _is_tensor(content: Any) -> bool:
    made = isinstance(content, _Inert) and re.match(r"torch\.(_utils|_tensor)\._rebuild|torch\.nn\.param", content.path)
    return bool(made)


def _is_dict(content: Any) -> bool:
    return not isinstance(content, _Inert) or content.path == "collections.OrderedDict"


def refusal(path: str, held: Held, reason: str) -> str:
    """The message that refuses a file, with the line of Python that resaves its weights.

    Args:
        path: the file.
        held: its content.
        reason: the restricted reader's message, for a file whose types are all allowed.
    """
    foreign = held.foreign
    commands = [name for name in foreign if _COMMANDS.fullmatch(name)]
    if commands:
        return (
            f"{path} asks to call {commands[0]} when it is read, which weights never need: its pickled code may do "
            "harm, and is not run. Take the weights from a source that you trust."
        )
    line = resaving(held, path)
    if isinstance(held.content, _Inert) and held.content.path in foreign:
        foreign = [held.content.path, *(name for name in foreign if name != held.content.path)]
    more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
    where = " where these can be imported" if foreign else ""
    remedy = (
        "No weights of a network can be seen in it."
        if line is None
        else f"If you trust the file, save its weights anew{where}: {line}"
    )
    if not foreign:
        return f"{path} cannot be read without running its pickle, which is not done ({reason}). {remedy}"
    return f"{path} holds pickled code ({', '.join(foreign[:_NAMED])}{more}), which is not run. {remedy}"
