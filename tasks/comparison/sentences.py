"""Captions of two models for one image: how alike they are, and which words came and went."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pixelmill.tasks.comparison.findings import lower_mean, lower_share, rank_findings
from pixelmill.tasks.comparison.results import ClassChange, Finding
from pixelmill.tasks.metrics.captions import cider_d
from pixelmill.tasks.metrics.results import Metric

__all__ = ["CaptionTally", "token_f1"]

_MOST_WORDS = 40
# CIDEr-D needs all sentences at once: of more, it is taken on the first, which are a random sample
_CIDER_IMAGES = 20_000


def token_f1(a: str, b: str) -> float:
    """Words in common, counted as often as both have them: 2 |a and b| / (|a| + |b|); symmetric.

    Args:
        a: tokenised, one space between tokens.
        b: likewise; two empty ones are alike.
    """
    first, second = Counter(a.split()), Counter(b.split())
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0


@dataclass(slots=True)
class CaptionTally:
    """Sums over the images of two captioners; all captions tokenised.

    Attributes:
        words_a: word -> images of A that have it; words_b likewise. A vocabulary is bounded.
    """

    num_images: int = 0
    num_same: int = 0
    sum_f1: float = 0.0
    sum_longer: float = 0.0
    sum_longer_squared: float = 0.0
    words_a: Counter[str] = field(default_factory=Counter)
    words_b: Counter[str] = field(default_factory=Counter)
    texts_a: Counter[str] = field(default_factory=Counter)
    texts_b: Counter[str] = field(default_factory=Counter)
    sample: list[tuple[str, str]] = field(default_factory=list)

    def add(self, a: str, b: str) -> float:
        """Take one image; returns its token F1."""
        alike = token_f1(a, b)
        self.num_images += 1
        self.num_same += a == b
        self.sum_f1 += alike
        longer = len(b.split()) - len(a.split())
        self.sum_longer += longer
        self.sum_longer_squared += longer**2
        self.words_a.update(set(a.split()))
        self.words_b.update(set(b.split()))
        if len(self.sample) < _CIDER_IMAGES:
            self.sample.append((a, b))
            self.texts_a[a] += 1
            self.texts_b[b] += 1
        return alike

    def headline(self) -> tuple[Metric, ...]:
        """Numbers over all images."""
        if not self.num_images:
            return ()
        a, b = [pair[0] for pair in self.sample], [pair[1] for pair in self.sample]
        forth, back = (_cider(x, y) for x, y in ((a, b), (b, a)))
        itself = (_cider(a, a) + _cider(b, b)) / 2
        return (
            Metric(
                "same sentence",
                self.num_same / self.num_images,
                "images whose two captions are equal as PTB tokens in lower case",
            ),
            Metric(
                "token F1",
                self.sum_f1 / self.num_images,
                "words in common, 2 |A and B| / (|A| + |B|), mean over images",
            ),
            Metric(
                "CIDEr-D similarity",
                (forth + back) / 2 / itself if itself else 1.0,
                "CIDEr-D of A against B and of B against A, mean, over what each has against "
                f"itself; of {len(self.sample):,} images",
            ),
            Metric(
                "longer by",
                self.sum_longer / self.num_images,
                "tokens of B less tokens of A, mean over images",
            ),
        )

    def per_class(self) -> tuple[ClassChange, ...]:
        """The words whose number of images changed most."""
        words = sorted(
            self.words_a.keys() | self.words_b.keys(),
            key=lambda word: (-abs(self.words_a[word] - self.words_b[word]), word),
        )
        return tuple(
            ClassChange(
                word,
                self.words_a[word],
                self.words_b[word],
                {
                    "change": float(self.words_b[word] - self.words_a[word]),
                    "images in A": self.words_a[word] / max(1, self.num_images),
                    "images in B": self.words_b[word] / max(1, self.num_images),
                },
            )
            for word in words[:_MOST_WORDS]
            if self.words_a[word] != self.words_b[word]
        )

    def findings(self) -> tuple[Finding, ...]:
        """What changed: one sentence for all, words that went or came, length, wording."""
        if not self.num_images:
            return ()
        total = self.num_images
        apart = 1 - self.sum_f1 / total
        found = [
            Finding(
                "wording",
                None,
                apart,
                lower_share(apart * total, total),
                f"captions share {1 - apart:.0%} of their words (token F1); "
                f"{self.num_same:,} of {total:,} are equal",
            )
        ]
        ((_, most_a),) = self.texts_a.most_common(1)
        ((text_b, most_b),) = self.texts_b.most_common(1)
        if most_b > 2 * most_a and most_b > 1:
            size = len(self.sample)
            low = lower_share(most_b, size) - most_a / size + apart
            text = f"B says the same of {most_b:,} of {size:,} images: {text_b!r}"
            found.append(Finding("one sentence", None, most_b / size, low, text))
        for word in self.words_a.keys() | self.words_b.keys():
            in_a, in_b = self.words_a[word], self.words_b[word]
            more, fewer = max(in_a, in_b), min(in_a, in_b)
            if more < 3 or fewer > more / 2:
                continue
            # among the images that have it, beyond the change of wording as a whole
            low = lower_share(more - fewer, more) - apart
            way = "went" if in_a > in_b else "came"
            text = f"word {word}: in {in_a:,} captions of A and {in_b:,} of B"
            found.append(Finding(f"word {way}", word, (more - fewer) / more, low, text))
        longer = self.sum_longer / total
        low = lower_mean(self.sum_longer, self.sum_longer_squared, total)
        mean_length = max(1.0, sum(len(a.split()) for a, _ in self.sample) / len(self.sample))
        found.append(
            Finding(
                "length",
                None,
                min(1.0, abs(longer) / mean_length),
                min(1.0, low / mean_length),
                f"captions are {abs(longer):.1f} tokens {'longer' if longer > 0 else 'shorter'} "
                "in B on average",
            )
        )
        return rank_findings(found)


def _cider(candidates: Sequence[str], references: Sequence[str]) -> float:
    return cider_d(candidates, [[text] for text in references])[0]
