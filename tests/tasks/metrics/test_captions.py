import json

import pytest

from pixelmill.tasks.metrics.captions import (
    bleu,
    cider_d,
    most_frequent_caption,
    rouge_l,
    score_captions,
)
from pixelmill.tasks.metrics.ptb import tokenize_captions

SETS = ("clipscore_good", "clipscore_bad", "fakecap_tylin_126", "fakecap_cocoapi_126")
LARGE_SETS = ("human_loo", "shuffled_human")
NAMES = {
    "Bleu_1": "BLEU-1", "Bleu_2": "BLEU-2", "Bleu_3": "BLEU-3", "Bleu_4": "BLEU-4",
    "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr-D",
}  # fmt: skip


def load(data, name):
    """The expected file, and the references in its order."""
    folder = data / "coco_captions_val2017"
    document = json.loads((folder / "expected" / f"{name}.json").read_text())
    references = document["references"]
    if isinstance(references, str):
        annotations = json.loads((folder / "captions_val2017.json").read_text())["annotations"]
        references = {}
        for annotation in sorted(annotations, key=lambda one: one["id"]):
            references.setdefault(str(annotation["image_id"]), []).append(annotation["caption"])
        if name == "human_loo":
            references = {image: texts[:-1] for image, texts in references.items()}
    return document, [references[image] for image in document["per_image_order"]]


@pytest.mark.parametrize(
    "name", [*SETS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE_SETS)]
)
def test_raw_captions_score_as_in_coco_caption(data, name):
    document, references = load(data, name)
    order = document["per_image_order"]
    scores = score_captions([document["candidates"][image] for image in order], references)
    found = {metric.name: metric.value for metric in scores.metrics}
    for theirs, ours in NAMES.items():
        assert found[ours] == pytest.approx(document["expected"][theirs], abs=1e-9), ours
    for theirs, ours in (("CIDEr", "CIDEr-D"), ("ROUGE_L", "ROUGE-L")):
        assert [row[ours] for row in scores.per_image] == pytest.approx(
            document["per_image"][theirs], abs=1e-9
        )
    assert [row["BLEU-4"] for row in scores.per_image] == pytest.approx(
        document["per_image"]["Bleu"][3], abs=1e-9
    )


@pytest.mark.parametrize("name", SETS)
def test_tokenised_candidates_score_as_in_coco_caption(data, name):
    document, references = load(data, name)
    candidates = [document["tokenized_candidates"][image] for image in document["per_image_order"]]
    references = [tokenize_captions(texts) for texts in references]
    bleus, _ = bleu(candidates, references)
    expected = document["expected"]
    assert bleus == pytest.approx([expected[f"Bleu_{n}"] for n in (1, 2, 3, 4)], abs=1e-9)
    assert rouge_l(candidates, references)[0] == pytest.approx(expected["ROUGE_L"], abs=1e-9)
    assert cider_d(candidates, references)[0] == pytest.approx(expected["CIDEr"], abs=1e-9)


def test_bleu_by_hand():
    bleus, per_image = bleu(["a b c d"], [["a b x d e"]])
    # 3 of 4 unigrams, 1 of 3 bigrams; one token shorter than the closest reference
    penalty = 2.718281828459045 ** (1 - 5 / 4)
    assert bleus[0] == pytest.approx(3 / 4 * penalty)
    assert bleus[1] == pytest.approx((3 / 4 * 1 / 3) ** 0.5 * penalty)
    assert per_image == [bleus]


def test_bleu_of_a_perfect_corpus_is_one():
    bleus, _ = bleu(["a b c d e"], [["a b c d e", "x y"]])
    assert bleus == pytest.approx((1.0, 1.0, 1.0, 1.0))


def test_rouge_takes_the_best_precision_and_the_best_recall():
    mean, _ = rouge_l(["a b c d"], [["a b", "a b c d e f g h"]])
    # precision 4 of 4 with the second reference, recall 2 of 2 with the first
    assert mean == pytest.approx(1.0)
    half, _ = rouge_l(["a x b y"], [["a b c d"]])
    assert half == pytest.approx(0.5)


def test_cider_of_a_copy_is_ten_where_every_image_has_its_own_words():
    references = [["a b c d e"], ["f g h i j"], ["k l m n o"]]
    mean, per_image = cider_d(["a b c d e", "f g h i j", "a b c d e"], references)
    assert per_image == pytest.approx([10.0, 10.0, 0.0])
    assert mean == pytest.approx(20 / 3)


def test_words_of_every_image_are_worth_nothing():
    references = [["the dog"], ["the cat"]]
    assert cider_d(["the", "the"], references)[0] == 0.0


def test_an_empty_caption_scores_zero_and_nothing_fails():
    scores = score_captions(["", "a cat on a mat"], [["a dog in a park"], ["a cat on a mat"]])
    assert scores.per_image[0] == pytest.approx(
        {"BLEU-4": 0.0, "ROUGE-L": 0.0, "CIDEr-D": 0.0}, abs=1e-6
    )


def test_the_baseline_is_the_most_frequent_reference():
    references = [["a dog", "a cat"], ["a cat", "a bird"], ["a dog"]]
    assert most_frequent_caption(references) == "a cat"
    metric = score_captions(["a dog", "a cat", "a dog"], references).metrics[-1]
    assert metric.name == "CIDEr-D baseline"
    assert metric.value == pytest.approx(cider_d(["a cat"] * 3, references)[0])
    assert "'a cat'" in metric.definition


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [([], [], "at least one"), (["a"], [], "as many"), (["a"], [[]], "no reference")],
)
def test_bad_input_is_refused(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        score_captions(candidates, references)
