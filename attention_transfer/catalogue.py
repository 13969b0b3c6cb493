"""The catalogue of networks that can be built by name. It imports no torch, so that `--help` is instant."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from attention_transfer.errors import ConfigError


class NetworkFamily(NamedTuple):
    """A family of networks that can be built by name.

    Attributes:
        home: module and name of its `Architecture`, as in "package.module:NAME"; loaded when a network is built.
        pattern: regular expression of the whole name.
        example: a name in the family.
        summary: a short description.
        depth_rest: for families whose depth, the first number of the name, is 6n + depth_rest, n at least 1.
    """

    home: str
    pattern: str
    example: str
    summary: str
    depth_rest: int | None = None


_HOME = "attention_transfer.networks.families"

NETWORKS: list[NetworkFamily] = [
    NetworkFamily(
        f"{_HOME}.multibranch:MULTI_BRANCH_NET",
        "MultiBranchNet",
        "MultiBranchNet",
        "four stages of parallel branches with ECA, under 3 M parameters",
    ),
    NetworkFamily(f"{_HOME}.resnet:RESNET18", "ResNet18", "ResNet18", "torchvision's ResNet-18"),
    NetworkFamily(f"{_HOME}.resnet:RESNET50", "ResNet50", "ResNet50", "torchvision's ResNet-50"),
    NetworkFamily(
        f"{_HOME}.cifar_resnet:CIFAR_RESNET",
        r"CifarResNet-(\d+)",
        "CifarResNet-20",
        "ResNet for 32x32 images, depth 6n+2 (He et al. 2015)",
        depth_rest=2,
    ),
    NetworkFamily(
        f"{_HOME}.cifar_resnet_b:CIFAR_RESNET_B",
        r"CifarResNetB-(\d+)(?:x([24]))?",
        "CifarResNetB-8x4",
        "the same with projection shortcuts, as RepDistiller and mdistiller have it (resnet8x4, resnet56)",
        depth_rest=2,
    ),
    NetworkFamily(
        f"{_HOME}.wide_resnet:WIDE_RESNET",
        r"WideResNet-(\d+)-([1-9]\d*)",
        "WideResNet-16-2",
        "Wide ResNet, depth 6n+4 and width",
        depth_rest=4,
    ),
]


TIMM, TORCHVISION = "timm", "torchvision"


def library_of(name: str) -> tuple[str, str]:
    """The library and the name in it of 'timm/NAME' or 'torchvision/NAME'; two empty strings for any other name."""
    library, slash, short = name.partition("/")
    is_one = slash and library.lower() in (TIMM, TORCHVISION) and re.fullmatch(r"[\w.\-]+", short)
    return (library.lower(), short) if is_one else ("", "")


WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".ckpt", ".tar", ".bin", ".pkl")


def is_path(name: str) -> bool:
    """Whether a network is named by a file: it ends as files of weights do, or holds a slash and no library's prefix.

    Example:
        >>> is_path("runs/student_best.pth"), is_path("timm/resnet18"), is_path("ResNet18")
        (True, False, False)
    """
    return not any(library_of(name)) and (name.lower().endswith(WEIGHT_FILES) or "/" in name or "\\" in name)


def canonical_network_name(name: str) -> str:
    """The registered spelling of `name`, whatever its case; 'timm/NAME' and 'torchvision/NAME' as they are.

    Whether a library has a network is checked when it is built, because that imports the library.

    Raises:
        ConfigError: no family has such a name, and the message gives the nearest one; or the family has no network of
            this depth.
    """
    library, short = library_of(name)
    if library:
        return f"{library}/{short}"
    for family in NETWORKS:
        if re.fullmatch(family.pattern, name, flags=re.IGNORECASE):
            numbers = [int(number) for number in re.findall(r"\d+", name.partition("-")[2])]
            canonical = _spelled_as(family, name)
            if family.depth_rest is not None and (numbers[0] < 6 or numbers[0] % 6 != family.depth_rest):
                raise ConfigError(f"{canonical}: the depth must be 6n + {family.depth_rest}, as in {family.example}.")
            return canonical
    examples = [family.example for family in NETWORKS]
    raise ConfigError(
        f"no network is called {name!r}; known are {', '.join(examples)}, and those of timm and torchvision as "
        f"timm/NAME and torchvision/NAME.{nearest(name, examples)}"
    )


def _spelled_as(family: NetworkFamily, name: str) -> str:
    """`name` with the family's own upper and lower case, its numbers without leading zeros."""
    prefix, dash, rest = name.partition("-")
    rest = re.sub(r"\d+", lambda number: str(int(number[0])), rest)
    own = family.example.partition("-")[0]
    spellings = (f"{prefix}{dash}{rest}", f"{own}{dash}{rest}", f"{own}{dash}{rest.lower()}")
    return next((spelling for spelling in spellings if re.fullmatch(family.pattern, spelling)), name)


def nearest(word: str, known: list[str]) -> str:
    """A sentence that proposes the most similar known word; empty if none is similar.

    Args:
        word: as given.
        known: the candidates.
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.5)
    return f" Did you mean {by_lower_case[close[0]]!r}?" if close else ""
