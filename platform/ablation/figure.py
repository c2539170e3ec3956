"""The table as a picture: every seed a dot, every row's mean a line, yardsticks in grey."""

from matplotlib.figure import Figure

from ablation.table import Table

__all__ = ["draw"]


def draw(table: Table) -> Figure:
    """A panel for each metric of the table, rows from top to bottom in the table's order."""
    rows = [*table.rows, *table.references]
    figure = Figure(figsize=(4.2 * len(table.metrics) + 1.5, 0.5 * len(rows) + 1.4), dpi=150)
    panels = figure.subplots(1, len(table.metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, table.metrics, strict=True):
        for height, row in enumerate(rows):
            entry = row.entries[metric.name]
            values = [r.value for r in entry.results if r.value is not None]
            color = "0.55" if row.reference else "C0" if row.baseline else "C1"
            panel.plot(values, [height] * len(values), "o", color=color, alpha=0.7)
            if entry.summary is not None:
                panel.plot(entry.summary.mean, height, "|", color=color, ms=22, mew=2)
        title = f"{metric.name} ({metric.direction} is better)"
        panel.set_title(title, fontsize=10, parse_math=False)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
    panels[0].invert_yaxis()
    figure.suptitle(table.name, parse_math=False)
    figure.tight_layout()
    return figure
