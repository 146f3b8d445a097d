"""docs/models.md is made by a command; its numbers of parameters are those of the code."""

import re
from pathlib import Path

import pytest

from pixelmill.models.catalogue import CATALOGUE, count_parameters
from pixelmill.tasks import model_table
from pixelmill.tasks.model_table import measure_speeds, read_results, render_table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def cells(page: str) -> dict[str, list[str]]:
    """Cells of each row by the network's name."""
    lines = [line[1:-1] for line in page.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {re.sub(r" \(`\w+`\)$", "", row[0]): row for row in rows[2:]}


def test_the_committed_page_has_the_codes_networks_and_parameters() -> None:
    rows = cells(PAGE.read_text())
    assert list(rows) == [entry.name for entry in CATALOGUE]
    for entry in CATALOGUE:
        ours, published = rows[entry.name][3:5]
        assert int(ours.replace(",", "")) == count_parameters(entry)
        assert published == (f"{entry.published:,}" if entry.published else "")


def test_what_was_reached_stands_beside_the_architectures_first_network() -> None:
    results = [
        {"architecture": "ssd", "dataset": "BCCD", "metric": "AP50", "value": 0.8512},
        {"architecture": "ssd", "dataset": "BCCD", "metric": "AP", "value": 0.5},
        {
            "architecture": "ssd",
            "dataset": "PennFudan",
            "metric": "AP50",
            "value": 0.5,
            "parameters": 1_940_000,
        },
    ]
    speeds = {"machine": "a machine", "images_per_s": {"SSD512": 12.3456}}
    rows = cells(render_table(results, speeds))
    assert rows["SSD300"][5] == "BCCD: AP50 0.851, AP 0.500; PennFudan (1.9 M): AP50 0.500"
    assert rows["SSD512"][5] == ""
    assert rows["SSD512"][6] == "12.3 at 512x512"
    assert "Images/s on a machine." in render_table(results, speeds)


def test_results_of_trainings_are_a_list_or_not_there(tmp_path) -> None:
    path = tmp_path / "training.json"
    assert read_results(path) == []
    path.write_text('[{"architecture": "unet"}]')
    assert read_results(path) == [{"architecture": "unet"}]
    path.write_text('{"other": 1}')
    with pytest.raises(ValueError, match="expected a list of results"):
        read_results(path)


@pytest.mark.parametrize("name", ["Plain full resolution", "RetinaNet, small, with masks"])
def test_a_speed_is_measured_with_the_machine(monkeypatch, name) -> None:
    chosen = tuple(entry for entry in CATALOGUE if entry.name == name)
    monkeypatch.setattr(model_table, "CATALOGUE", chosen)
    speeds = measure_speeds(0)
    assert speeds["images_per_s"][name] > 0
    assert "torch" in speeds["machine"]
