import torch

from pixelmill.models.ops.grid import decode_grid, encode_grid, match_shapes


def test_decoding_undoes_encoding():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(50, 2, generator=generator) * 200
    boxes = torch.cat((low, low + 2 + torch.rand(50, 2, generator=generator) * 100), dim=1)
    anchors = 5 + torch.rand(50, 2, generator=generator) * 100
    rows, columns, codes = encode_grid(boxes, anchors, 16, (20, 20))
    for index in range(50):
        raw = torch.zeros(20, 20, 1, 4)
        place = torch.logit(codes[index, :2].double(), eps=1e-12)
        raw[rows[index], columns[index], 0] = torch.cat((place.float(), codes[index, 2:]))
        found = decode_grid(raw, anchors[index : index + 1], 16)[rows[index], columns[index], 0]
        torch.testing.assert_close(found, boxes[index], atol=1e-3, rtol=1e-5)


def test_a_cell_of_zeros_is_an_anchor_at_its_middle():
    boxes = decode_grid(torch.zeros(2, 3, 1, 4), torch.tensor([[10.0, 20.0]]), 32)
    assert boxes[1, 2, 0].tolist() == [2.5 * 32 - 5, 1.5 * 32 - 10, 2.5 * 32 + 5, 1.5 * 32 + 10]


def test_a_centre_on_the_far_edge_belongs_to_the_last_cell():
    boxes = torch.tensor([[60.0, 60, 68, 68]])
    rows, columns, codes = encode_grid(boxes, torch.tensor([[8.0, 8]]), 32, (2, 2))
    assert (rows.tolist(), columns.tolist(), codes[0].tolist()) == ([1], [1], [1, 1, 0, 0])


def test_shapes_are_matched_wherever_the_box_is():
    anchors = torch.tensor([[10.0, 10], [10, 40], [40, 10]])
    boxes = torch.tensor([[100.0, 100, 109, 112], [0, 0, 50, 12], [7, 3, 19, 40]])
    assert match_shapes(boxes, anchors).tolist() == [0, 2, 1]
