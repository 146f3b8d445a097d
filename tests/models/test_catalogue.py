import pytest

from pixelmill.models.catalogue import CATALOGUE, count_parameters, entries_of
from pixelmill.models.zoo import ARCHITECTURES


@pytest.mark.parametrize(
    "entry", [entry for entry in CATALOGUE if entry.published], ids=lambda entry: entry.name
)
def test_a_network_has_as_many_parameters_as_published(entry) -> None:
    assert count_parameters(entry) == entry.published
    assert entry.source


def test_every_architecture_is_in_the_catalogue_and_nothing_else() -> None:
    assert {entry.architecture for entry in CATALOGUE} == set(ARCHITECTURES)
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    assert [entry.name for entry in entries_of("ssd")] == ["SSD300", "SSD512"]
