"""Plot of time and memory over length, one line per implementation."""

from pathlib import Path

from matplotlib.figure import Figure


def draw(curves: list[dict], path: Path, *, title: str) -> None:
    """Write the picture."""
    measured = [row for row in curves if row["status"] == "measured"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name in dict.fromkeys(row["implementation"] for row in measured):
        rows = [row for row in measured if row["implementation"] == name]
        lengths = [row["size"]["length"] for row in rows]
        time.plot(lengths, [row["device_us"]["both"] / 1e3 for row in rows], "o-", label=name)
        memory.plot(lengths, [row["temp_mib"] for row in rows], "o-", label=name)
    for axes, what in ((time, "forward and backward, ms"), (memory, "temporary memory, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="length", title=what)
        lengths = sorted({row["size"]["length"] for row in measured})
        axes.set_xticks(lengths, lengths)
        axes.set_xticks([], minor=True)
        axes.grid(True, which="both", alpha=0.3)
    time.legend()
    if measured:
        size = measured[0]["size"]
        sizes = f"batch {size['batch']}, channels {size['channels']}, state {size['state']}"
        figure.suptitle(f"selective scan on {title}: {sizes}, {measured[0]['dtype']}")
    figure.savefig(path, dpi=120)
