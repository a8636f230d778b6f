"""Plots of a report, as inline SVG."""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sisma_jax.evaluation.robustness import curves
from sisma_jax.evaluation.scoring import LOWER_IS_BETTER, SCORES, Row, heading
from sisma_jax.synthesis.arguments import FURTHER_OPTIONS


def quality_plots(rows: Sequence[Row]) -> dict[str, str]:
    """Scores of synthesis against solver steps and against guidance, by file name.

    A plot is made if there are at least two values.
    """
    made = [row for row in rows if row.kind == "synthesis"]
    keys = [key for key in SCORES if any(key in row.scores for row in made)]
    plots = {}
    for along, others in (("steps", ("solver", "guidance")), ("guidance", ("solver", "steps"))):
        if keys and len({row.settings[along] for row in made}) > 1:
            plots[f"quality_by_{along}"] = _plot(_lines(made, others), keys, along)
    return plots


def noise_plots(rows: Sequence[Row]) -> dict[str, str]:
    """Scores against the strength of noise in masks, by file name; a plot for each noise."""
    plots = {}
    for noise, lines in curves(rows).items():
        every = [row for line in lines.values() for row in line.values()]
        keys = [key for key in SCORES if any(key in row.scores for row in every)]
        as_rows = {whose: list(line.values()) for whose, line in lines.items()}
        name = f"mask_noise_{noise.replace('+', '_')}"
        plots[name] = _plot(as_rows, keys, "noise_strength", f"strength of {noise}")
    return plots


def _lines(rows: Sequence[Row], others: tuple[str, str]) -> dict[str, list[Row]]:
    """The rows of each combination of the other settings, by its name."""
    lines: dict[str, list[Row]] = defaultdict(list)
    several = len({row.settings["model"] for row in rows}) > 1
    for row in rows:
        model = [row.settings["model"]] if several else []
        seed = [f"seed {row.settings['seed']}"] if row.settings["seed"] else []
        rest = [row.settings[others[0]], f"{others[1]} {row.settings[others[1]]:g}"]
        times = [
            f"{name.replace('_', ' ')} {row.settings[name]}"
            for name in FURTHER_OPTIONS
            if name in row.settings
        ]
        lines[", ".join([*model, *rest, *times, *seed])].append(row)
    return lines


def _plot(
    lines: Mapping[str, Sequence[Row]], keys: Sequence[str], along: str, axis: str = ""
) -> str:
    """Scores against the setting `along`, which `axis` names, with a line for each entry."""
    # Slow to import, and not needed by reports without plots.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [row for line in lines.values() for row in line]
    # Every line has a name where the most lines are.
    legend = max(keys, key=lambda key: sum(key in row.scores for row in rows))
    figure = Figure(figsize=(3.4 * len(keys), 3.0), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for label, line in lines.items():
            points = sorted((row.settings[along], row.scores[key]) for row in line
                            if key in row.scores)  # fmt: skip
            if points:
                of_masks = {} if "model" in line[0].settings else {"ls": "--", "color": "grey"}
                axes.plot(*zip(*points, strict=True), marker="o", label=label, **of_masks)
        better = "lower" if key in LOWER_IS_BETTER else "higher"
        axes.set(xlabel=axis or along, title=f"{heading(key, rows)}\n({better} is better)")
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3)
        if key == legend:
            axes.legend(fontsize="x-small")
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
