import torch

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.dense import dense_outputs


def test_the_best_over_their_class_threshold_are_kept_in_order(make_spec):
    spec = make_spec(
        "detection",
        postprocess=BoxPostprocess(
            score_threshold=0.3, class_thresholds={"b": 0.6}, pre_nms_top_k=3
        ),
        classes=("a", "b"),
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 90, 20]]).expand(2, 2, 4)
    scores = torch.tensor([[[0.31, 0.7], [0.9, 0.55]], [[0.1, 0.2], [0.29, 0.59]]])
    first, second = dense_outputs(boxes, scores, spec, (64, 48))
    torch.testing.assert_close(first.scores, torch.tensor([0.9, 0.7, 0.31]))
    assert first.labels.tolist() == [0, 1, 0]
    assert first.boxes_xyxy.tolist() == [[5, 5, 48, 20], [0, 0, 10, 10], [0, 0, 10, 10]]
    assert second.boxes_xyxy.shape == (0, 4)


def test_no_more_than_asked_for_are_kept(make_spec):
    spec = make_spec("detection", postprocess=BoxPostprocess(pre_nms_top_k=5), classes=("a",))
    scores = torch.linspace(0.1, 0.9, 20).view(1, 20, 1)
    (found,) = dense_outputs(torch.rand(1, 20, 4), scores, spec, (8, 8))
    torch.testing.assert_close(found.scores, scores[0, -5:, 0].flip(0))
