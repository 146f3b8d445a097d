"""BLEU, ROUGE-L and CIDEr-D, equal to coco-caption's numbers without its Java.

Scorers take captions that are tokenised already, one space between tokens
(`pixelmill.tasks.metrics.ptb.tokenize_captions`); `score_captions` does both.

Source: Papineni et al., BLEU, ACL 2002; Lin, ROUGE, 2004; Vedantam et al., CIDEr, CVPR 2015; and
the conventions (smoothing constants, closest length, max over references) of
https://github.com/tylin/coco-caption, which every published COCO number uses.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pixelmill.tasks.metrics.ptb import tokenize_captions
from pixelmill.tasks.metrics.results import Metric
from pixelmill.tasks.metrics.statistics import CaptionStatistics

__all__ = ["CaptionScores", "bleu", "cider_d", "most_frequent_caption", "rouge_l", "score_captions"]

MAX_ORDER = 4
# coco-caption's: they keep a sentence without n-grams from dividing by 0, and are part of every
# published number (a corpus without one 4-gram match scores 3.75e-05, not 0).
_TINY, _SMALL = 1e-15, 1e-9
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0

NGram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """What `score_captions` found; `per_image` is in the order of the candidates."""

    metrics: tuple[Metric, ...]
    per_image: tuple[dict[str, float], ...]
    statistics: CaptionStatistics


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score raw captions: tokenise, then BLEU-1 to 4, ROUGE-L, CIDEr-D and its baseline.

    Args:
        candidates: one per image; empty text where there is no caption.
        references: at least one per image.

    Raises:
        ValueError: no images, lengths differ, or an image has no reference.
    """
    _check(candidates, references)
    tokenized = tokenize_captions(candidates)
    flat = iter(tokenize_captions([text for texts in references for text in texts]))
    tokenized_references = [[next(flat) for _ in texts] for texts in references]
    candidate_ngrams = [_ngrams(text) for text in tokenized]
    reference_ngrams = [[_ngrams(text) for text in texts] for texts in tokenized_references]
    bleu_counts = _corpus_counts(candidate_ngrams, reference_ngrams)
    bleus, bleu_per_image = _bleu(bleu_counts)
    rouge, rouge_per_image = rouge_l(tokenized, tokenized_references)
    corpus = _CiderCorpus(reference_ngrams)
    cider, cider_per_image = corpus.score(candidate_ngrams)
    baseline = most_frequent_caption(tokenized_references)
    baseline_cider, baseline_per_image = corpus.score([_ngrams(baseline)] * len(tokenized))
    return CaptionScores(
        metrics=_metrics(bleus, rouge, cider, baseline, baseline_cider),
        per_image=tuple(
            {"BLEU-4": one_bleu[-1], "ROUGE-L": one_rouge, "CIDEr-D": one_cider}
            for one_bleu, one_rouge, one_cider in zip(
                bleu_per_image, rouge_per_image, cider_per_image, strict=True
            )
        ),
        statistics=CaptionStatistics(
            bleu_counts=np.array(bleu_counts),
            bleu_of=_bleu_from,
            means={
                "ROUGE-L": np.array(rouge_per_image),
                "CIDEr-D": np.array(cider_per_image),
                "CIDEr-D baseline": np.array(baseline_per_image),
            },
        ),
    )


def _metrics(
    bleus: Sequence[float], rouge: float, cider: float, baseline: str, baseline_cider: float
) -> tuple[Metric, ...]:
    tokens = "PTB tokens in lower case without punctuation, as coco-caption"
    return (
        *(
            Metric(
                f"BLEU-{order}",
                value,
                f"geometric mean of the clipped 1- to {order}-gram precisions of the corpus, "
                f"brevity penalty with the closest reference length; {tokens}",
            )
            for order, value in enumerate(bleus, start=1)
        ),
        Metric(
            "ROUGE-L",
            rouge,
            f"F of the longest common subsequence, beta 1.2, best precision and best recall over "
            f"the references, mean over images; {tokens}",
        ),
        Metric(
            "CIDEr-D",
            cider,
            f"tf-idf similarity of 1- to 4-grams, clipped, length penalty sigma 6, times 10, "
            f"document frequency from these references, mean over images; {tokens}",
        ),
        Metric(
            "CIDEr-D baseline",
            baseline_cider,
            f"CIDEr-D of the most frequent reference caption ({baseline!r}) given to every image",
        ),
    )


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not candidates or len(candidates) != len(references):
        raise ValueError(
            "need as many candidates as reference lists, at least one; got "
            f"{len(candidates)} and {len(references)}"
        )
    bare = [index for index, texts in enumerate(references) if not texts]
    if bare:
        raise ValueError(f"images {bare[:10]} have no reference caption; leave them out")


def most_frequent_caption(references: Iterable[Sequence[str]]) -> str:
    """The commonest caption of a corpus, the alphabetically first of equals."""
    counts = Counter(text for texts in references for text in texts)
    return min(counts, key=lambda text: (-counts[text], text))


def _ngrams(text: str) -> Counter[NGram]:
    """1- to 4-grams with their counts."""
    tokens = text.split()
    counts: Counter[NGram] = Counter()
    for order in range(1, MAX_ORDER + 1):
        counts.update(zip(*(tokens[start:] for start in range(order)), strict=False))
    return counts


def bleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[tuple[float, ...], list[tuple[float, ...]]]:
    """BLEU-1 to BLEU-4 with the length of the closest reference.

    Args:
        candidates: tokenised, one per image.
        references: tokenised, at least one per image.

    Returns:
        The corpus's four numbers, and four for each image.

    Raises:
        ValueError: no images, lengths differ, or an image has no reference.
    """
    _check(candidates, references)
    return _bleu(
        _corpus_counts(
            [_ngrams(text) for text in candidates],
            [[_ngrams(text) for text in texts] for texts in references],
        )
    )


def _corpus_counts(
    candidates: Sequence[Counter[NGram]], references: Sequence[Sequence[Counter[NGram]]]
) -> list[list[int]]:
    return [_bleu_counts(*pair) for pair in zip(candidates, references, strict=True)]


def _bleu(
    counts: Sequence[Sequence[int]],
) -> tuple[tuple[float, ...], list[tuple[float, ...]]]:
    total = [sum(column) for column in zip(*counts, strict=True)]
    return _bleu_from(total), [_bleu_from(one) for one in counts]


def _num_tokens(ngrams: Counter[NGram]) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 1)


def _bleu_counts(candidate: Counter[NGram], references: Sequence[Counter[NGram]]) -> list[int]:
    """Candidate length, closest reference length, then guesses and hits of each order."""
    length = _num_tokens(candidate)
    closest = min(map(_num_tokens, references), key=lambda other: (abs(other - length), other))
    guesses = [max(0, length - order) for order in range(MAX_ORDER)]
    hits = [0] * MAX_ORDER
    for ngram, count in candidate.items():
        most = max(reference.get(ngram, 0) for reference in references)
        hits[len(ngram) - 1] += min(most, count)
    return [length, closest, *guesses, *hits]


def _bleu_from(counts: Sequence[int]) -> tuple[float, ...]:
    length, closest = counts[:2]
    guesses, hits = counts[2 : 2 + MAX_ORDER], counts[2 + MAX_ORDER :]
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(MAX_ORDER):
        product *= (hits[order] + _TINY) / (guesses[order] + _SMALL)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return tuple(scores)


def rouge_l(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """ROUGE-L as coco-caption has it: best precision and best recall over the references, beta 1.2.

    Args:
        candidates: tokenised, one per image.
        references: tokenised, at least one per image.

    Returns:
        The mean, and one number for each image.

    Raises:
        ValueError: no images, lengths differ, or an image has no reference.
    """
    _check(candidates, references)
    per_image = [
        _rouge_of(candidate.split(" "), [text.split(" ") for text in texts])
        for candidate, texts in zip(candidates, references, strict=True)
    ]
    return math.fsum(per_image) / len(per_image), per_image


def _rouge_of(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    common = [_longest_common(candidate, reference) for reference in references]
    precision = max(common) / len(candidate)
    recall = max(
        length / len(reference) for length, reference in zip(common, references, strict=True)
    )
    if precision == 0 or recall == 0:
        return 0.0
    weight = _ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table at a time as bits.

    Source: Hyyrö, Bit-parallel LCS-length computation revisited, 2004.
    """
    positions: dict[str, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        match = row & positions.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(first) - row.bit_count()


def cider_d(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """CIDEr-D (what coco-caption prints as CIDEr), document frequencies from the references.

    Args:
        candidates: tokenised, one per image.
        references: tokenised, at least one per image. With a single image every weight is 0, and
            so is the score.

    Returns:
        The mean, and one number for each image, each in [0, 10].

    Raises:
        ValueError: no images, lengths differ, or an image has no reference.
    """
    _check(candidates, references)
    corpus = _CiderCorpus([[_ngrams(text) for text in texts] for texts in references])
    return corpus.score([_ngrams(text) for text in candidates])


@dataclass(frozen=True, slots=True)
class _Vector:
    """tf-idf weights by n-gram, the norm of each order, and the number of bigrams."""

    weights: dict[NGram, float]
    norms: tuple[float, ...]
    length: int


class _CiderCorpus:
    """References as tf-idf vectors, to score any number of candidate sets against."""

    def __init__(self, references: Sequence[Sequence[Counter[NGram]]]) -> None:
        frequency: Counter[NGram] = Counter()
        for texts in references:
            frequency.update(set().union(*texts))
        self._log_images = math.log(len(references))
        self._idf = {ngram: self._log_images - math.log(n) for ngram, n in frequency.items()}
        self._references = [[self._vector(text) for text in texts] for texts in references]

    def score(self, candidates: Iterable[Counter[NGram]]) -> tuple[float, list[float]]:
        per_image = []
        for candidate, texts in zip(candidates, self._references, strict=True):
            hypothesis = self._vector(candidate)
            similarities = [_similarity(hypothesis, text) for text in texts]
            per_image.append(10 * math.fsum(similarities) / len(similarities))
        return math.fsum(per_image) / len(per_image), per_image

    def _vector(self, counts: Counter[NGram]) -> _Vector:
        unseen = self._log_images
        weights = {ngram: n * self._idf.get(ngram, unseen) for ngram, n in counts.items()}
        squares = [0.0] * MAX_ORDER
        length = 0
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight * weight
            # coco-caption measures length in bigrams, not in words
            length += counts[ngram] if len(ngram) == 2 else 0
        return _Vector(weights, tuple(math.sqrt(value) for value in squares), length)


def _similarity(hypothesis: _Vector, reference: _Vector) -> float:
    """Mean over the orders of the clipped cosine, times the length penalty."""
    sums = [0.0] * MAX_ORDER
    for ngram, weight in hypothesis.weights.items():
        other = reference.weights.get(ngram)
        if other is not None:
            sums[len(ngram) - 1] += min(weight, other) * other
    for order in range(MAX_ORDER):
        norm = hypothesis.norms[order] * reference.norms[order]
        if norm:
            sums[order] /= norm
    delta = hypothesis.length - reference.length
    return math.fsum(sums) / MAX_ORDER * math.exp(-(delta**2) / (2 * _CIDER_SIGMA**2))
