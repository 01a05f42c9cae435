"""`metanb data`: check or fetch image sets."""

import sys

import click

from metanb.cli.options import Group
from metanb.data import image_sets
from metanb.labels import DATASETS


@click.group("data", cls=Group)
def data_group() -> None:
    """Check or fetch the image sets."""


@data_group.command("check")
@click.argument("dataset", nargs=-1)
def check_command(dataset: tuple[str, ...]) -> None:
    """Check that image sets are present and whole.

    DATASET is glyphs, omniglot, mini-imagenet or a folder of your own under the data root; the
    default is the first three. The exit code is 1 if one is missing or damaged.
    """
    failed = False
    click.echo(f"data root: {image_sets.data_root()}")
    for name in dataset or DATASETS:
        try:
            click.echo(f"{name}: {image_sets.check_images(name)}")
        except (image_sets.DataError, OSError) as error:
            failed = True
            click.echo(f"{name}: {error}", err=True)
    sys.exit(1 if failed else 0)


@data_group.command("fetch")
@click.argument("dataset", type=click.Choice(list(DATASETS)))
def fetch_command(dataset: str) -> None:
    """Fetch an image set, if its terms allow."""
    click.echo(f"{dataset}: {image_sets.fetch_images(dataset)}")
