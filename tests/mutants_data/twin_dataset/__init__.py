"""A dataset that keeps every promise of its kind."""

from atom.plugin import Dataset, hookimpl


@hookimpl
def atom_datasets():
    yield Dataset(
        name="twin_dataset",
        summary="the lines of files",
        config="twin_dataset.config:Config",
        source="twin_dataset.source:source",
    )
