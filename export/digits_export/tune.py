"""Search for hyperparameters: many short trainings of one family of networks, the hopeless ones cut off early.

Judged by validation accuracy alone; the test images are not even loaded into a trial.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from digits_export import recipe, report, training
from digits_export.data import Mnist

WARM_UP_TRIALS, WARM_UP_EPOCHS = 5, 3  # before a trial may be judged against the median of the others
COLUMNS = ("number", "state", "validation", "epochs", "learning_rate", "batch_size", "wide", "narrow", "dropout", "l2")


def suggest(base: recipe.Recipe, trial: Any) -> recipe.Recipe:
    """Return the base recipe with two hidden layers and the learning rate, batch, widths, dropout and L2 of a trial."""
    wide = trial.suggest_categorical("wide", [64, 128, 256])
    narrow = trial.suggest_categorical("narrow", [32, 64, 128])
    rate = trial.suggest_float("dropout", 0.0, 0.4, step=0.05)
    l2 = trial.suggest_float("l2", 1e-7, 1e-4, log=True)
    layers = [
        part
        for units in (wide, narrow)
        for part in (recipe.Layer("dense", units=units, l2=l2), recipe.Layer("dropout", rate=rate))
    ]
    fit = dataclasses.replace(
        base.fit,
        learning_rate=trial.suggest_float("learning_rate", 3e-4, 5e-3, log=True),
        batch_size=trial.suggest_categorical("batch_size", [64, 128, 256]),
    )
    return dataclasses.replace(base, network=recipe.Network(tuple(layers)), fit=fit)


def tune(base: recipe.Recipe, data: Mnist, folder: Path, trials: int, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Run a study and write `trials.json`, `trials.md` and `trials.png` into `folder`.

    Args:
        base: Gives the epochs, the seed and whatever is not searched.
        data: The images.
        folder: Where the results go.
        trials: How many settings to try.
        quiet: Whether to leave out the progress bar.

    Returns:
        One row a trial, best first.
    """
    import optuna  # noqa: PLC0415  (its import takes a second)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=base.seed),
        pruner=optuna.pruners.MedianPruner(WARM_UP_TRIALS, WARM_UP_EPOCHS),
    )

    def objective(trial: Any) -> float:
        def judge(epoch: int, validation: float) -> None:
            trial.report(validation, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        with tempfile.TemporaryDirectory() as scratch:
            chosen = suggest(base, trial)
            _, history = training.train(chosen, data, Path(scratch), quiet=True, after_epoch=judge)
        return max(history.curves["val_accuracy"])

    study.optimize(objective, trials, show_progress_bar=not quiet)
    rows = sorted((_row(trial) for trial in study.trials), key=lambda row: -row["validation"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trials.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "trials.md").write_text(_table(rows))
    (folder / "trials.png").write_bytes(report.to_png(_plot(study.trials)))
    return rows


def _row(trial: Any) -> dict[str, Any]:
    values = trial.intermediate_values
    state = {"number": trial.number, "state": trial.state.name.lower(), "epochs": len(values)}
    return state | {"validation": max(values.values(), default=0.0)} | trial.params


def _table(rows: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [COLUMNS, ["---"] * len(COLUMNS), *([cell(row[name]) for name in COLUMNS] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plot(trials: list[Any]) -> Figure:
    """Draw validation accuracy by epoch of every trial: finished ones dark, pruned ones light."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for trial in trials:
        finished = trial.state.name == "COMPLETE"
        epochs, values = list(trial.intermediate_values), list(trial.intermediate_values.values())
        axes.plot([epoch + 1 for epoch in epochs], values, color="#2b6cb0" if finished else "#cbd5e0", linewidth=1)
    axes.set(xlabel="epoch", ylabel="validation accuracy", title="trials: finished (blue) and pruned (grey)")
    return figure
