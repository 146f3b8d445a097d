import torch

from pixelmill.models.show_and_tell import ShowAndTell


def test_parameter_count():
    # By hand: Inception-v3 without its classifiers, then the paper's widths
    lstm = 4 * 512 * (512 + 512 + 2)
    words = 9_490
    with torch.device("meta"):
        ours = sum(each.numel() for each in ShowAndTell(words).parameters())
    assert ours == 21_785_568 + (2048 + 1) * 512 + words * 512 + lstm + (512 + 1) * words


def test_the_image_is_one_word_whatever_its_size():
    model = ShowAndTell(7, "resnet18", embed_dim=8, hidden_dim=16).eval()
    with torch.no_grad():
        for size in ((64, 96), (67, 93)):
            assert model(torch.zeros(2, 3, *size)).shape == (2, 1, 8)


def test_the_sentence_depends_on_the_image():
    torch.manual_seed(0)
    model = ShowAndTell(7, "resnet18", embed_dim=8, hidden_dim=16).eval()
    features = torch.randn(2, 1, 8)
    state = model.start(features)
    logits, _, _ = model.step(features, model.keys(features), torch.tensor([1, 1]), state)
    assert not torch.equal(logits[0], logits[1])
