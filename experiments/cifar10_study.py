"""The CIFAR-10 study on a CPU: every row of the table as one short, resumable training run.

The papers' schedules take 160 epochs or more, which is for a GPU. Here each run starts from the
same trained float network and continues for 15 epochs with a cosine rate; the row `float` gets
the same epochs (the fair twin). One core needs about an hour for a run of ResNet-20:

    OMP_NUM_THREADS=1 nice -n 10 python experiments/cifar10_study.py --dataset DIRECTORY \\
        --checkpoint DIRECTORY/resnet20_cifar10_fp.safetensors --output out/cifar10_study

DIRECTORY of the data holds CIFAR-10 as parquet files. A run whose metrics.json exists is not
repeated and an interrupted one goes on from its last epoch, so the command may be stopped and
given again. `--runs NAME...` takes some rows only, `--list` names them all. What finished runs
measured is kept in the repository:

    python experiments/cifar10_study.py --output out/cifar10_study --record recipes/cifar10/results
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from timm_ternary.checkpoint.run_files import METRICS_NAME, TRAINING_NAME
from timm_ternary.files import write_json
from timm_ternary.train import main as train

SCHEDULE = {
    "num_train_epochs": "15",
    "lr_scheduler_type": "cosine",
    "learning_rate": "0.04",
    "optimizer": "sgd",
    "momentum": "0.9",
    "nesterov": "true",
    "weight_decay": "1e-4",
    "max_grad_norm": "0",
    "per_device_train_batch_size": "128",
    "per_device_eval_batch_size": "500",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": "1",
    "logging_steps": "100",
    "disable_tqdm": "true",
}
"""Fields of every run: no recipe's schedule, but the one of the prototype (90.59 % with tga)."""

METHODS = "recipes/cifar10/resnet20_"
RUNS: dict[str, list[str]] = {
    "tga_joint": ["tga", "--update", "joint"],
    "float": ["float"],
    "ttq": ["ttq", "--weight_decay", "1e-4"],
    "tga_alternate": ["tga"],
    "twn": ["twn"],
    "tga_joint_channel": [
        *("tga", "--update", "joint"),
        *("--ternary", '{"method": "tga", "granularity": "channel"}'),
    ],
    "bitnet": ["bitnet"],
    "rel": ["rel"],
    "tga_quarter": ["tga", "--threshold_fraction", "0.25"],
    "tga_no_correctness": ["tga_no_correctness"],
    "tga_adam_thresholds": ["tga_adam_thresholds"],
    "tga_factor005": ["tga_factor005", "--update", "joint"],
    "tga_factor015": ["tga_factor015", "--update", "joint"],
    "bwn": ["bwn"],
    "dorefa": ["dorefa"],
    "admm": ["admm"],
    "abcnet": ["abcnet"],
}
"""Name of a row: the recipe of recipes/cifar10/ that it begins with, and what it changes there."""


def words_of(name: str, dataset: str, checkpoint: str, output: Path) -> list[str]:
    """The command line of one run, as ``timm-ternary train`` takes it."""
    recipe, *changes = RUNS[name]
    fields = [word for key, value in SCHEDULE.items() for word in (f"--{key}", value)]
    # Some recipes give milestones, which exclude a schedule by name.
    fields += ["--lr_milestones", "null", "--dataset", dataset, "--checkpoint", checkpoint]
    directory = output / name
    fields += ["--output_dir", str(directory)]
    if any(directory.glob("checkpoint-*/trainer_state.json")):
        fields += ["--resume_from_checkpoint", "true"]
    return [f"{METHODS}{recipe}.yaml", *fields, *changes]


def record(output: Path, results: Path) -> list[str]:
    """Write what each finished run measured to ``results/NAME.json``; the names of these runs."""
    finished = [name for name in RUNS if (output / name / METRICS_NAME).exists()]
    for name in finished:
        words = words_of(
            name, "DIRECTORY", "DIRECTORY/resnet20_cifar10_fp.safetensors", Path("out")
        )
        metrics, training = (
            json.loads((output / name / file).read_text()) for file in (METRICS_NAME, TRAINING_NAME)
        )
        command = shlex.join(["timm-ternary", "train", *words])
        results.mkdir(parents=True, exist_ok=True)
        values = {"run": name, "command": command, "metrics": metrics, "training": training}
        write_json(results / f"{name}.json", values)
    return finished


def main() -> None:
    """Run the rows that have no metrics yet, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="directory of CIFAR-10 parquet files")
    parser.add_argument("--checkpoint", help="float ResNet-20 to start from")
    parser.add_argument("--output", type=Path, default=Path("out/cifar10_study"))
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names of the runs")
    parser.add_argument(
        "--record", type=Path, help="train nothing; keep finished runs' metrics here"
    )
    options = parser.parse_args()
    if options.list:
        print("\n".join(RUNS))
        return
    if options.record is not None:
        print("\n".join(record(options.output, options.record)))
        return
    if not options.dataset or not options.checkpoint:
        parser.error("--dataset and --checkpoint are needed")
    for name in options.runs:
        if not (options.output / name / METRICS_NAME).exists():
            print(f"== {name}", flush=True)
            train(words_of(name, options.dataset, options.checkpoint, options.output))


if __name__ == "__main__":
    main()
