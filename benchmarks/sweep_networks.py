"""Is attention read from the right tensors? One network of every architecture file of timm, and 20 of torchvision.

    python -m benchmarks.sweep_networks --photos hymenoptera-photos.tar --out sweep.jsonl

Each network is judged as student and as teacher on small photos (see `benchmarks.measuring.rightness`), and is one line
of the file: right, slow to learn, documented but not following the image, refused, wrong, or left out. A network that
is in the file is not run again, so that the sweep can be stopped and goes on. `--table` prints what the file says.
"""

from __future__ import annotations

import argparse
import json
import logging
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.models import _registry
from torch import Tensor, nn

from attention_transfer import create_model
from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD
from benchmarks.measuring.rightness import judge

SIDE = 160
PHOTOS = 6
CLASSES = 10
MOST_PARAMETERS = 100e6
RIGHT, SLOW, MISSED, REFUSED, WRONG, LEFT_OUT = (
    "right", "right, learns slowly", "documented, missed a check", "refused", "wrong", "left out"
)  # fmt: skip

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
    mobilenet_v3_small regnet_x_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t
    swin_v2_t vgg11 vit_b_16
"""

ALSO = ("resnet50d", "seresnet50", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3")
"""Of architecture files of which another network is the smallest."""


def smallest_of_each_file() -> Iterator[tuple[str, float]]:
    """timm's smallest network of each architecture file, with its number of parameters."""
    for module in sorted(_registry._module_to_models):
        sizes = {}
        for name in sorted(_registry._module_to_models[module]):
            with torch.device("meta"):
                try:
                    network = timm.create_model(name)
                except Exception:
                    continue  # one that cannot be made without its image size or weights
            sizes[name] = sum(parameter.numel() for parameter in network.parameters())
            if len(sizes) > 8 and min(sizes.values()) < 12e6:
                break
        if sizes:
            best = min(sizes, key=lambda name: (sizes[name], name))
            yield f"timm/{best}", sizes[best]


def photos(archive: Path, side: int) -> Tensor:
    """A few photos [B, 3, side, side], normalised."""
    images = []
    with tarfile.open(archive) as tar:
        names = sorted(name for name in tar.getnames() if name.lower().endswith(".jpg"))
        for name in names[:: max(1, len(names) // PHOTOS)][:PHOTOS]:
            file = tar.extractfile(name)
            assert file is not None
            images.append(np.asarray(Image.open(BytesIO(file.read())).convert("RGB").resize((side, side))))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def judged(name: str, archive: Path, partner: nn.Module) -> dict[str, Any]:
    """One line of the sweep.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.
        archive: of photos.
        partner: teaches the network, and learns from it.
    """
    started = time.perf_counter()
    torch.manual_seed(0)
    line: dict[str, Any] = {"network": name}
    try:
        network, images = _built(name, archive)
        side = images.shape[-1]
        verdict = judge(network, images, partner)
    except Exception as error:  # a network may fail in any way when it is built or run
        return {**line, "result": REFUSED, "reason": _sentence(error)}
    return {
        **line,
        "side": side,
        "result": _result(verdict.wrong),
        "stages": [stage.label for stage in verdict.stages.stages],
        "source": verdict.stages.source,
        "reason": "; ".join(verdict.wrong),
        "notes": list(verdict.notes),
        "seconds": round(time.perf_counter() - started),
    }


def _built(name: str, archive: Path) -> tuple[nn.Module, Tensor]:
    """A network with random weights and photos that it takes: of `SIDE`, or else of the size for which it was made."""
    try:
        network, images = create_model(name, CLASSES, image_size=(SIDE, SIDE)).eval(), photos(archive, SIDE)
        with torch.no_grad():
            network(images[:1])
    except Exception:
        network = create_model(name, CLASSES).eval()
        images = photos(archive, _side_of(network))
    return network, images


def _result(wrong: Sequence[str]) -> str:
    """How a network came off, from what was found wrong.

    Slow: every tensor is the right one, but AT does not fall to 0.8 of its start in 20 steps. Missed: the tensors are
    the documented ones, to the bit, but with random weights a map does not follow the image as asked.
    """
    if not wrong:
        return RIGHT
    if all("AT falls from" in sentence for sentence in wrong):
        return SLOW
    follows = ("moves with correlation", "changes most elsewhere", "changes in quarter", "AT falls from")
    return MISSED if all(any(words in sentence for words in follows) for sentence in wrong) else WRONG


def _side_of(network: nn.Module) -> int:
    """The side of the images for which a network was made: timm says it; torchvision's are made for 224."""
    published: Any = getattr(network, "pretrained_cfg", {})
    return int(published.get("input_size", (3, 224, 224))[-1])


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def table(lines: list[Mapping[str, Any]]) -> str:
    """The counts, and every network with its stages or the reason why it is refused, in Markdown."""
    counts = Counter(line["result"] for line in lines)
    head = ", ".join(f"{counts[result]} {result}" for result in (RIGHT, SLOW, MISSED, REFUSED, WRONG, LEFT_OUT))
    rows = [
        f"| {line['network']} | {line.get('side', '')} | {line['result']} | {_findings(line)} |"
        for line in sorted(lines, key=lambda line: str(line["network"]))
    ]
    titles = ["| network | pixels | | stages, or why not |", "|---|---|---|---|"]
    return "\n".join([f"{len(lines)} networks: {head}.", "", *titles, *rows])


def _findings(line: Mapping[str, Any]) -> str:
    parts = ["; ".join(line.get("stages", ())), line.get("reason", "")]
    if notes := line.get("notes"):
        kinds = notes[0].partition(": ")[0]
        parts.append(f"{kinds}, and so is exempt: {'; '.join(note.partition(': ')[2] for note in notes)}")
    return ". ".join(filter(None, parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="hymenoptera-photos.tar")
    parser.add_argument("--out", type=Path, required=True, help="file of results, one line a network")
    parser.add_argument("--only", nargs="*", help="these networks alone")
    parser.add_argument("--share", default="1/1", help="run this share alone, as 1/2 and 2/2 in two processes")
    parser.add_argument(
        "--without-onednn", action="store_true", help="for networks of which oneDNN's backward pass ends the process"
    )
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    arguments = parser.parse_args()
    lines = [json.loads(text) for text in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    if not arguments.table:
        if arguments.photos is None:
            parser.error("--photos is needed to run the sweep")
        logging.disable(logging.WARNING)
        torch.backends.mkldnn.enabled = not arguments.without_onednn  # type: ignore[assignment]
        partner = create_model("timm/resnet10t", CLASSES).eval()
        share, shares = map(int, arguments.share.split("/"))
        for name, parameters in list(_wanted(arguments.only))[share - 1 :: shares]:
            if any(line["network"] == name for line in lines):
                continue
            if parameters > MOST_PARAMETERS:
                line = {"network": name, "result": LEFT_OUT, "reason": f"{parameters / 1e6:.0f} million parameters"}
            else:
                line = judged(name, arguments.photos, partner)
            lines.append(line)
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line["network"], line["result"], line.get("reason", ""), flush=True)
    print(table(lines))


def _wanted(only: list[str] | None) -> Iterator[tuple[str, float]]:
    if only:
        yield from ((name, 0) for name in only)
        return
    yield from ((f"torchvision/{name}", 0) for name in TORCHVISION.split())
    yield from ((f"timm/{name}", 0) for name in ALSO)
    yield from smallest_of_each_file()


if __name__ == "__main__":
    main()
