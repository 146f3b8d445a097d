import torch
from torch import nn

from pixelmill.models.losses import weighted_sum
from pixelmill.models.semantic import semantic_loss, semantic_outputs
from pixelmill.models.targets import SemanticTarget
from pixelmill.models.unet import UNet


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = UNet(4, width=4, depth=2)
    targets = [SemanticTarget(torch.randint(0, 4, (20, 24))) for _ in range(2)]
    terms = semantic_loss(model, model(torch.rand(2, 3, 20, 24)), targets)
    weighted_sum(terms, {}).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_void_pixels_do_not_count():
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (8, 8), generator=torch.Generator().manual_seed(1))
    labels[:4] = 255
    other = logits.clone()
    other[:, :, :4] = 9
    torch.testing.assert_close(
        semantic_loss(nn.Identity(), logits, [SemanticTarget(labels)]),
        semantic_loss(nn.Identity(), other, [SemanticTarget(labels)]),
    )


def test_perfect_logits_cost_nothing():
    labels = torch.randint(0, 3, (8, 8), generator=torch.Generator().manual_seed(1))
    logits = 100.0 * torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)[None]
    terms = semantic_loss(nn.Identity(), logits, [SemanticTarget(labels.to(torch.uint8))])
    assert all(abs(float(term)) < 1e-5 for term in terms.values())


def test_weights_of_classes_and_pixels_reach_the_terms_they_are_for():
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (8, 8), generator=torch.Generator().manual_seed(1))
    weights = torch.rand(8, 8, generator=torch.Generator().manual_seed(2))

    def terms(target, **settings):
        return semantic_loss(nn.Identity(), (logits, logits), [target], **settings)

    plain = terms(SemanticTarget(labels))
    mapped = terms(SemanticTarget(labels, weights))
    classes = terms(SemanticTarget(labels), class_weights=torch.tensor([1.0, 4.0, 0.0]))
    hard = terms(SemanticTarget(labels), hard_share=0.1)
    assert mapped["dice"] == plain["dice"] == hard["dice"]
    assert hard["cross_entropy"] > plain["cross_entropy"]
    assert mapped["cross_entropy"] != plain["cross_entropy"]
    assert all(classes[name] != plain[name] for name in plain)
    # the auxiliary classifier says the same, and costs the same
    torch.testing.assert_close(classes["auxiliary"], classes["cross_entropy"] + classes["dice"])


def test_one_output_per_image(make_spec):
    logits = torch.randn(3, 2, 8, 8)
    outputs = semantic_outputs(nn.Identity(), logits, make_spec("semantic_segmentation"), (8, 8))
    assert torch.equal(torch.stack([each.logits for each in outputs]), logits)


def test_auxiliary_classifiers_add_a_term_of_their_weight():
    labels = torch.randint(0, 3, (8, 8), generator=torch.Generator().manual_seed(1))
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = semantic_loss(nn.Identity(), logits, [SemanticTarget(labels)])
    both = semantic_loss(
        nn.Identity(), (logits, logits, logits), [SemanticTarget(labels)], auxiliary_weight=0.4
    )
    assert both["auxiliary"] == 0.4 * (alone["cross_entropy"] + alone["dice"])
    assert both | alone == both
