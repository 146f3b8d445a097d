"""Tiny networks of transformers, saved in a folder as theirs are, against their own pipeline."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from pixelmill.configs.schema import (
    BoxPostprocess,
    CaptionModel,
    CaptionPostprocess,
    ClassificationModel,
    DetectionModel,
    PreprocessConfig,
    SemanticModel,
)
from pixelmill.models import hugging_face
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.interface import BoxOutput, CaptionOutput, ClassOutput, SemanticOutput
from pixelmill.tasks.engine.views import draw_view, place_whole

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle", "blue", "square", "on", "grey"]
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
    "pad_token_id": 0,
}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    return coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)[:height, :width]


def random(model):
    """Weights large enough that images differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 if parameter.ndim > 1 else parameter + noise * 0.1)
    return model.eval()


def save(folder, model, *others):
    random(model).save_pretrained(folder)
    for each in others:
        each.save_pretrained(folder)
    return model


def tokenizer(folder):
    (folder / "words.txt").write_text("\n".join(WORDS))
    return transformers.BertTokenizer(str(folder / "words.txt"))


def views(spec, *images) -> torch.Tensor:
    drawn = [
        draw_view(image, place_whole(image.shape[:2], spec.preprocess), spec.preprocess)
        for image in images
    ]
    return torch.from_numpy(np.stack(drawn))


def test_a_classifier_answers_as_its_own_pipeline_does(tmp_path) -> None:
    config = transformers.ViTConfig(**VIT, id2label={0: "cat", 1: "dog", 2: "newt"})
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32},
        resample=3,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.5, 0.6, 0.7],
    )
    model = save(tmp_path, transformers.ViTForImageClassification(config), processor)
    spec = resolve_model(ClassificationModel(name="vit", weights=str(tmp_path)), tmp_path)
    assert spec.architecture == "transformers"
    assert spec.classes == ("cat", "dog", "newt")
    assert spec.preprocess == PreprocessConfig(
        resize="stretch",
        canvases=((32, 32),),
        interpolation="bicubic",
        mean=(0.5, 0.4, 0.3),
        std=(0.5, 0.6, 0.7),
        pad_value=102,
    )
    images = [picture(48, 40), picture(20, 90, seed=1)]
    outputs = build_network(spec).predict(views(spec, *images))
    for image, output in zip(images, outputs, strict=True):
        assert isinstance(output, ClassOutput)
        inputs = processor(Image.fromarray(image), return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits.softmax(dim=1)[0]
        assert_close(output.probs, expected, atol=2e-3, rtol=0)


def detr(num_labels: int):
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    return transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=7,
        id2label=dict(enumerate(["N/A", "cell", "rod", "N/A", "ring"][:num_labels])),
    )


def test_a_detector_finds_what_its_own_pipeline_finds_padding_included(tmp_path) -> None:
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    model = save(tmp_path, transformers.DetrForObjectDetection(detr(5)), processor)
    config = DetectionModel(
        name="detr",
        weights=str(tmp_path),
        preprocess=PreprocessConfig(canvases=((96, 96),), pad_value=116),
    )
    spec = resolve_model(config, tmp_path)
    assert spec.classes == ("cell", "rod", "ring")
    assert spec.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    assert isinstance(spec.postprocess, BoxPostprocess)
    assert spec.postprocess.nms == "none"
    # through JSON, as a schedule keeps it, it is the same model: what was left out stays so
    again = DetectionModel.model_validate(config.model_dump(mode="json", exclude_unset=True))
    assert resolve_model(again, tmp_path).key == spec.key
    image = picture(64, 96)  # fills two thirds of the canvas
    canvas = views(spec, image)
    (output,) = build_network(spec).predict(canvas)
    assert isinstance(output, BoxOutput)
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (spec.preprocess.mean, spec.preprocess.std)
    )
    pixels = ((canvas.permute(0, 3, 1, 2) / 255) - mean) / std
    mask = torch.zeros(1, 96, 96, dtype=torch.long)
    mask[:, :64] = 1
    with torch.no_grad():
        raw = model(pixel_values=pixels, pixel_mask=mask)
    (expected,) = processor.post_process_object_detection(raw, 0.05, target_sizes=[(64, 96)])
    kept = [
        (score, {1: 0, 2: 1, 4: 2}[label], box)
        for score, label, box in zip(
            expected["scores"].tolist(), expected["labels"].tolist(), expected["boxes"], strict=True
        )
        if label in (1, 2, 4)
    ]
    assert kept
    assert len(output.scores) == len(kept)
    kept.sort(key=lambda each: -each[0])
    assert output.labels.tolist() == [label for _, label, _ in kept]
    assert_close(output.scores, torch.tensor([score for score, _, _ in kept]), atol=1e-4, rtol=0)
    boxes = torch.stack([box for _, _, box in kept])
    limits = torch.tensor([96.0, 96, 96, 96])
    assert_close(output.boxes_xyxy, boxes.clamp(min=0).minimum(limits), atol=0.05, rtol=0)


def test_padding_is_what_follows_the_last_pixel_of_the_image() -> None:
    pad = torch.tensor([0.5, 0.0, -0.5])[:, None, None]
    images = pad.expand(2, 3, 6, 8).clone()
    images[0, :, :4, :5] += 1
    images[0, :, 1, :5] = pad[:, :, 0]  # a grey line within the image is no padding
    rows, columns = hugging_face._content(images, pad)
    assert rows.sum(dim=1).tolist() == [4, 6]  # of an image that is all grey, nothing
    assert columns.sum(dim=1).tolist() == [5, 8]


def test_a_segmenters_logits_are_its_own(tmp_path) -> None:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label={0: "road", 1: "sky"},
    )
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 64})
    model = save(tmp_path, transformers.SegformerForSemanticSegmentation(config), processor)
    spec = resolve_model(SemanticModel(name="seg", weights=str(tmp_path)), tmp_path)
    canvas = views(spec, picture(50, 70))
    (output,) = build_network(spec).predict(canvas)
    assert isinstance(output, SemanticOutput)
    inputs = processor(canvas[0].numpy(), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0]
    assert output.logits.shape == (2, 16, 16)
    assert_close(output.logits, expected, atol=1e-4, rtol=1e-4)


def test_a_mask_classifiers_scores_are_those_of_its_own_pipeline(tmp_path) -> None:
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
            layer_type="basic", out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        decoder_config=detr(2),
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label={0: "road", 1: "sky"},
    )  # fmt: skip
    processor = transformers.MaskFormerImageProcessor(size={"height": 64, "width": 64})
    model = save(tmp_path, transformers.MaskFormerForInstanceSegmentation(config), processor)
    spec = resolve_model(SemanticModel(name="mf", weights=str(tmp_path)), tmp_path)
    canvas = views(spec, picture(64, 64))
    (output,) = build_network(spec).predict(canvas)
    assert isinstance(output, SemanticOutput)
    with torch.no_grad():
        raw = model(**processor(canvas[0].numpy(), return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(raw, target_sizes=[(64, 64)])
    ours = torch.nn.functional.interpolate(output.logits[None], (64, 64), mode="bilinear")
    assert (ours[0].argmax(dim=0) == expected).float().mean() > 0.99


def blip():
    config = transformers.BlipConfig(
        text_config=TEXT | {"encoder_hidden_size": 16}, vision_config=VIT, projection_dim=8
    )
    return transformers.BlipForConditionalGeneration(config)


def git():
    return transformers.GitForCausalLM(transformers.GitConfig(vision_config=VIT, **TEXT))


def vit_gpt2():
    decoder = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=40,
        bos_token_id=2, eos_token_id=3, add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VIT), decoder
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.update(decoder_start_token_id=2, pad_token_id=0, eos_token_id=3)
    return model


@pytest.fixture(params=[blip, git, vit_gpt2], ids=lambda build: build.__name__)
def captioner(request, tmp_path):
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    torch.manual_seed(0)
    save(tmp_path, request.param(), processor, tokenizer(tmp_path))
    return tmp_path


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_captioners_sentences_have_the_probability_that_its_steps_give(
    captioner, beam_size
) -> None:
    """Batch mates change nothing, and the log probability is that of the words, one by one."""
    config = CaptionModel(
        name="c",
        weights=str(captioner),
        postprocess=CaptionPostprocess(beam_size=beam_size, max_tokens=6),
    )
    spec = resolve_model(config, captioner)
    assert spec.classes == ()
    network = build_network(spec)
    images = views(spec, *(picture(40, 50, seed) for seed in range(3)))
    together = network.predict(images)
    alone = [network.predict(image[None])[0] for image in images]
    assert together == alone
    for output in together:
        assert isinstance(output, CaptionOutput)
        assert 1 <= output.num_tokens <= 6
        assert output.logprob < 0
        assert set(output.text.split()) <= set(WORDS)
    module = hugging_face.load_module(spec, captioner)
    pixels = (images[:1].permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    first = together[0]
    assert isinstance(first, CaptionOutput)
    assert first.logprob == pytest.approx(_logprob(module, pixels, beam_size), abs=1e-3)


def _logprob(module, pixels, beam_size) -> float:
    """Of the sentence that generate finds, by reading it once more, all words at once."""
    model = module.model
    found = model.generate(
        pixel_values=pixels, num_beams=beam_size, max_new_tokens=6, do_sample=False,
        **({"length_penalty": 0.7} if beam_size > 1 else {}),
    )  # fmt: skip
    with torch.no_grad():
        if model.config.model_type == "blip":
            seen = model.vision_model(pixels)[0]
            logits = model.text_decoder(found, encoder_hidden_states=seen).logits
        elif model.config.model_type == "git":
            logits = model(pixel_values=pixels, input_ids=found).logits[:, -found.shape[1] :]
        else:
            logits = model(pixel_values=pixels, decoder_input_ids=found).logits
    steps = logits[0, :-1].log_softmax(dim=-1).gather(1, found[0, 1:, None])[:, 0]
    ends = (found[0, 1:] == 3).nonzero()
    return float(steps[: int(ends[0]) + 1 if len(ends) else None].sum())


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True,
             "crop_size": {"height": 224, "width": 224}},
            {"resize": "center_crop", "crop_from": 256, "canvases": ((224, 224),)},
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            {"resize": "center_crop", "crop_from": 256, "canvases": ((224, 224),),
             "interpolation": "bicubic"},
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 1.0},
            {"resize": "stretch", "canvases": ((384, 384),)},
        ),
        (
            {"size": {"height": 8, "width": 16}, "rescale_factor": 1 / 127.5},
            {"resize": "stretch", "canvases": ((8, 16),), "mean": (0.25,) * 3, "std": (0.5,) * 3},
        ),
        (
            {"size": {"height": 8, "width": 8}, "do_normalize": False,
             "do_flip_channel_order": True},
            {"mean": (0.0,) * 3, "std": (1.0,) * 3, "channels": "bgr"},
        ),
    ],
)  # fmt: skip
def test_an_image_processor_says_how_images_are_prepared(processor, expected) -> None:
    known = {"image_mean": [0.5] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 255}
    preprocess = hugging_face._preprocess("m", "classification", Namespace(**known | processor))
    for field, value in expected.items():
        assert getattr(preprocess, field) == pytest.approx(value) if field in (
            "mean", "std",
        ) else getattr(preprocess, field) == value  # fmt: skip


class Namespace:
    """An image processor's attributes."""

    def __init__(self, **attributes) -> None:
        vars(self).update(attributes)


@pytest.mark.parametrize(
    "processor",
    [
        {"size": {"height": 8, "width": 8}, "resample": 1},
        {"size": {"height": 8, "width": 8}, "rescale_offset": True},
        {"do_resize": False},
    ],
)
def test_what_canvases_cannot_have_is_refused(processor) -> None:
    known = {"image_mean": [0.5] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 255}
    with pytest.raises(ValueError, match="set preprocess:"):
        hugging_face._preprocess("m", "classification", Namespace(**known | processor))


def test_a_checkpoint_without_a_head_is_refused_instead_of_scored_at_random(tmp_path) -> None:
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    save(tmp_path, transformers.ViTModel(transformers.ViTConfig(**VIT)), processor)
    spec = resolve_model(ClassificationModel(name="vit", weights=str(tmp_path)), tmp_path)
    with pytest.raises(ValueError, match=r"no weights for classifier\..* not trained for"):
        build_network(spec)
    with pytest.raises(ValueError, match="cannot do detection"):
        build_network(resolve_model(DetectionModel(name="d", weights=str(tmp_path)), tmp_path))


def test_what_a_folder_lacks_is_said_with_its_remedy(tmp_path) -> None:
    save(tmp_path, transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)))
    model = ClassificationModel(name="vit", weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"no image processor .* image_processor\.save_pretrained"):
        resolve_model(model, tmp_path)
    known = PreprocessConfig(
        resize="stretch", canvases=((32, 32),), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    named = model.model_copy(update={"preprocess": known})
    assert resolve_model(named, tmp_path).preprocess == known
    with pytest.raises(ValueError, match="has 2 classes, got 3"):
        resolve_model(named.model_copy(update={"classes": ("a", "b", "c")}), tmp_path)
    caption = CaptionModel(name="c", weights=str(tmp_path), preprocess=known)
    with pytest.raises(ValueError, match="cannot do captioning"):
        build_network(resolve_model(caption, tmp_path))


def test_pickled_weights_are_looked_at_before_they_are_opened(tmp_path) -> None:
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    model = save(
        tmp_path, transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)), processor
    )
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weights": model}, tmp_path / "pytorch_model.bin")
    config = ClassificationModel(name="vit", weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"would import and call .*transformers\.models.*--trust"):
        resolve_model(config, tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    build_network(resolve_model(config, tmp_path))


def test_code_in_a_folder_is_never_run(tmp_path) -> None:
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    save(tmp_path, transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)), processor)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model_type"] = "of-its-own"
    content["auto_map"] = {"AutoConfig": "code.Config"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ValueError, match=r"vit: .* cannot be used: .*"):
        resolve_model(ClassificationModel(name="vit", weights=str(tmp_path)), tmp_path)
    assert not (tmp_path / "owned").exists()


def test_another_engine_for_captions_is_refused(captioner) -> None:
    config = CaptionModel(name="c", weights=str(captioner), engine="openvino")
    with pytest.raises(ValueError, match="engine: torch only"):
        resolve_model(config, captioner)
