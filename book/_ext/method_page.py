"""The settings and the rules' constants, for the page "Method"."""

from formats import format_value, markdown_table

from metanb.claims import predictions, rules
from metanb.labels import name_of
from metanb.settings import Settings, preset

SCALES = ("smoke", "quick", "paper")
PAPER_SETTINGS = [
    ("omniglot", 5, 1),
    ("omniglot", 20, 1),
    ("mini-imagenet", 5, 1),
    ("mini-imagenet", 5, 5),
]


def settings_table(columns: dict[str, Settings], only_changing: bool) -> str:
    """Settings side by side: one row per setting, with its meaning.

    Args:
        columns: settings by the head of their column.
        only_changing: leave out settings that are the same in all columns, and those that a
            column's head names.
    """
    rows = []
    for name, field in Settings.__dataclass_fields__.items():
        values = [getattr(settings, name) for settings in columns.values()]
        is_changing = name not in ("dataset", "ways", "shots") and len(set(values)) > 1
        if is_changing or not only_changing:
            rows.append([f"`{name}`", *map(format_value, values), field.metadata["help"]])
    return markdown_table(["Setting", *columns, "Meaning"], rows)


def settings_values() -> dict[str, str]:
    """Substitutions from the settings."""
    scales = {scale: preset(scale, "omniglot") for scale in SCALES}
    paper = {
        f"{name_of(dataset)}, {ways}-way {shots}-shot": preset("paper", dataset, ways, shots)
        for dataset, ways, shots in PAPER_SETTINGS
    }
    return {
        "scales": settings_table(scales, True),
        "paper_settings": settings_table(paper, True),
        "all_settings": settings_table({"default": Settings()}, False),
        "final_tasks": format_value(preset("paper").final_tasks),
    }


def rule_values() -> dict[str, str]:
    """Substitutions from the constants of the rules."""
    return {
        "across": format_value(rules.ACROSS),
        "min_epochs": format_value(rules.MIN_EPOCHS),
        "peak_by": format_value(rules.PEAK_BY),
        "strong": format_value(rules.STRONG),
        "power": f"{100 * rules.POWER:.0f} %",
        "orthogonal": format_value(rules.ORTHOGONAL),
        "margin": format_value(predictions.MARGIN),
    }
