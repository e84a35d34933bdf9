"""What a cheaper pass of the thresholds costs in accuracy: one recipe, several ways to update.

On the bundled digits (about half a minute a run on one core):

    timm-ternary train recipes/digits/resnet8_float.yaml
    python experiments/threshold_cost.py recipes/digits/resnet8_tga.yaml --seeds 0 1 2

On CIFAR-10 files, from float weights (a minute a run on one core):

    python experiments/threshold_cost.py recipes/cifar10/resnet20_tga.yaml --dataset DIRECTORY \\
        --checkpoint WEIGHTS --max_train_samples 4000 --num_train_epochs 3 \\
        --learning_rate 0.05 --lr_milestones 1.5 2.5

Words that are not options of this script are fields of the recipe, for every run. A run whose
metrics.json exists is not repeated, so the command may be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from timm_ternary.training.arguments.recipe import parse
from timm_ternary.training.run import ARGUMENTS, fit

VARIANTS: dict[str, list[str]] = {
    "thresholds stay": ["--update", "joint", "--threshold_learning_rate", "0"],
    "joint": ["--update", "joint"],
    "alternate": ["--update", "alternate"],
    "alternate, every 4": ["--update", "alternate", "--threshold_every", "4"],
    "alternate, half": ["--update", "alternate", "--threshold_fraction", "0.5"],
    "alternate, quarter": ["--update", "alternate", "--threshold_fraction", "0.25"],
}


def run(recipe: str, words: list[str], variant: str, seed: int, directory: Path) -> dict[str, Any]:
    """Metrics of one training run, read from `directory` if it holds them already."""
    path, cost = directory / "metrics.json", directory / "cpu_seconds.json"
    if not path.exists():
        own = [*VARIANTS[variant], "--seed", str(seed), "--output_dir", str(directory)]
        quiet = ["--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"]
        start = time.process_time()
        fit(*parse([recipe, *words, *own, *quiet], *ARGUMENTS))
        cost.write_text(json.dumps(time.process_time() - start))
    return {**json.loads(path.read_text()), "cpu_seconds": json.loads(cost.read_text())}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Accuracy: mean and standard deviation over the seeds; time: median of ratios to joint.

    It is the CPU time of a whole run, loading and evaluation included: other work on the machine
    does not show in it. (Steps alone: tests/benchmarks/test_step_benchmark.py.)
    """
    rows = ["| update | accuracy, % | zeros, % | time / joint | seeds |", "|---|---|---|---|---|"]
    for variant, runs in results.items():
        accuracies = [100 * metrics["eval_accuracy"] for metrics in runs]
        spread = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
        pairs = zip(runs, results["joint"], strict=True)
        ratio = statistics.median(own["cpu_seconds"] / joint["cpu_seconds"] for own, joint in pairs)
        zeros = statistics.mean(100 * metrics["zeros"] for metrics in runs)
        accuracy = f"{statistics.mean(accuracies):.2f} ± {spread:.2f}"
        rows.append(f"| {variant} | {accuracy} | {zeros:.1f} | {ratio:.2f} | {len(runs)} |")
    return "\n".join(rows)


def main() -> None:
    """Run all variants, seed by seed, and print the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="of a ternary model with thresholds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("out/threshold_cost"))
    options, words = parser.parse_known_args()
    results: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    base = options.output / Path(options.recipe).stem
    for seed in options.seeds:
        for number, variant in enumerate(VARIANTS):
            name = f"{number}-{variant.replace(', ', '-').replace(' ', '-')}"
            directory = base / name / f"seed{seed}"
            results[variant].append(run(options.recipe, words, variant, seed, directory))
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
