"""Sources opened and read as a run does."""

import pytest

from configs.errors import SourceError
from configs.sources import HFSource
from data.sources.opening import open_source


def open_data(dataset: str, seed: int = 1, **keys):
    return open_source(HFSource(type="hf", dataset=dataset, label="data", **keys), cache_dir=None, seed=seed)


def texts(source, epoch: int = 0, position=None) -> list[str]:
    return [document.text for document, _ in source.documents(epoch, position)]


def problem_of(dataset: str, **keys) -> str:
    """What is wrong with a data set that cannot be opened, or not be read."""
    with pytest.raises(SourceError) as caught:
        texts(open_data(dataset, **keys))
    return str(caught.value).removeprefix("source data: ")
