import torch

from pixelmill.models.show_attend_tell import ShowAttendTell


def test_parameter_count():
    assert sum(p.numel() for p in ShowAttendTell(100).parameters()) == 1_397_750


def test_annotation_vectors_are_those_of_the_places_row_by_row():
    model = ShowAttendTell(7, width=8, depths=(1, 1))
    assert model(torch.zeros(2, 3, 33, 48)).shape == (2, 5 * 6, 16)
