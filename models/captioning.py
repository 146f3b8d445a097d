"""Captions: the vocabulary, the search for a sentence, and the loss that all captioners share.

A captioner turns an image into features, and a decoder reads them word by word: its state before
the first word, and a step from one word to the next. The search divides the log probability by
the length to a power (Wu et al., Google's Neural Machine Translation System, 2016,
https://arxiv.org/abs/1609.08144, equation 14, without the coverage term).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.configs.schema import CaptionPostprocess
from pixelmill.models.interface import CaptionOutput
from pixelmill.models.ops.candidates import pieces
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import CaptionTarget, Target

__all__ = [
    "END",
    "PAD",
    "START",
    "UNKNOWN",
    "Captioner",
    "DecoderState",
    "Hypothesis",
    "beam_search",
    "build_vocabulary",
    "caption_loss",
    "caption_outputs",
    "encode_caption",
]

# The first tokens of every vocabulary.
PAD, START, END, UNKNOWN = range(4)
_SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")

# Weight of the penalty on places that the sentence never looked at: lambda of equation 14 of Show,
# Attend and Tell (Xu et al., 2015). One that looks at a single place pays nothing.
_ATTENTION_WEIGHT = 1.0


def build_vocabulary(captions: Iterable[str], *, min_count: int = 2) -> tuple[str, ...]:
    """Tokens by index: the special ones, then words by how often they occur.

    Args:
        captions: sentences of the training images.
        min_count: rarer words are unknown.
    """
    counts = Counter(word for caption in captions for word in _split(caption))
    words = sorted(
        (word for word in counts if counts[word] >= min_count), key=lambda w: (-counts[w], w)
    )
    return *_SPECIAL, *words


def encode_caption(caption: str, vocabulary: Sequence[str]) -> Tensor:
    """(T,) int64: start, a token per word or comma, end."""
    index = {word: position for position, word in enumerate(vocabulary)}
    words = [index.get(word, UNKNOWN) for word in _split(caption)]
    return torch.tensor([START, *words, END])


def _split(caption: str) -> list[str]:
    """Lower-case words and commas; other punctuation is left out."""
    return re.findall(r"[\w'-]+|,", caption.lower())


def _join(tokens: Iterable[int], vocabulary: Sequence[str]) -> str:
    return " ".join(vocabulary[token] for token in tokens if token != END).replace(" ,", ",")


class DecoderState(NamedTuple):
    """Of the recurrent cell, (N, D) each."""

    hidden: Tensor
    memory: Tensor


class Captioner(Protocol):
    """What the search and the loss ask of a captioner; its forward gives (B, L, C) features."""

    def keys(self, features: Tensor) -> Tensor:
        """What of the (N, L, C) features every step needs, computed once: (N, L, any)."""
        ...

    def grid(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the L places on a canvas (height, width)."""
        ...

    def start(self, features: Tensor) -> DecoderState:
        """The state before the first word."""
        ...

    def step(
        self, features: Tensor, keys: Tensor, tokens: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Read one word and predict the next.

        Args:
            features: (N, L, C), or (1, L, C) for all.
            keys: of them.
            tokens: (N,) int64, the last word.
            state: of N sentences.

        Returns:
            (N, V) logits of the next word, (N, L) shares that the places have in it, adding up to
            1, and the next state.
        """
        ...


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sentence that the search found.

    Attributes:
        tokens: without the start token; the end token is the last one if the sentence ended
            before it became too long.
        logprob: natural logarithm of its probability.
        attention: (T, L) float32, the share that each of the L places had in each token; where the
            features are.
    """

    tokens: tuple[int, ...]
    logprob: float
    attention: Tensor


def caption_loss(
    module: nn.Module, outputs: Tensor, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Cross-entropy of each next word given the true ones before it.

    Args:
        module: the `Captioner` that gave the outputs.
        outputs: (B, L, C) features.
        targets: `CaptionTarget` per image.

    Returns:
        Scalars "cross_entropy", per word, and "attention", the penalty on uneven looking.
    """
    model = cast("Captioner", module)
    sentences = nn.utils.rnn.pad_sequence(
        [cast("CaptionTarget", target).tokens for target in targets],
        batch_first=True,
        padding_value=PAD,
    )
    features = outputs.float()
    keys = model.keys(features)
    state = model.start(features)
    looked = features.new_zeros(features.shape[:2])
    logits = []
    for position in range(sentences.shape[1] - 1):
        step_logits, attention, state = model.step(features, keys, sentences[:, position], state)
        reads_word = (sentences[:, position + 1] != PAD)[:, None]
        looked = looked + attention * reads_word
        logits.append(step_logits)
    # summing to T / L everywhere is what "everywhere alike" means for a sentence of T words
    words = (sentences[:, 1:] != PAD).sum(dim=1, keepdim=True)
    unevenness = ((words / features.shape[1] - looked) ** 2).sum(dim=1).mean()
    return {
        "cross_entropy": F.cross_entropy(
            torch.stack(logits, dim=1).flatten(0, 1), sentences[:, 1:].flatten(), ignore_index=PAD
        ),
        "attention": _ATTENTION_WEIGHT * unevenness / features.shape[1],
    }


def beam_search(
    model: Captioner, features: Tensor, postprocess: CaptionPostprocess
) -> list[Hypothesis]:
    """The best sentences that searches of `beam_size` parallel sentences find.

    Deterministic; of equally probable words the one that stands first in the vocabulary is taken.
    A beam of 1 is greedy search. A GPU is waited for once in a few words, and once at the end.

    Args:
        model: in evaluation mode.
        features: (B, L, C) features.
        postprocess: beam size, longest sentence and length penalty.

    Returns:
        One sentence per image.
    """
    batch_size, device = len(features), features.device
    between_looks = _words_between_looks(device)
    images = torch.arange(batch_size, device=device)[:, None]
    keys = model.keys(features)
    tokens = torch.full((batch_size,), START, device=device)
    state = model.start(features)
    logprobs = torch.zeros(batch_size, 1, device=device)
    room = torch.full((batch_size, 1), postprocess.beam_size, device=device)
    best = _Best.none(batch_size, device)
    steps: list[_Step] = []
    for length in range(1, postprocess.max_tokens + 1):
        num_slots = logprobs.shape[1]
        logits, attention, state = model.step(
            _repeated(features, num_slots), _repeated(keys, num_slots), tokens, state
        )
        # only words and the end are ever said
        logits[:, [PAD, START, UNKNOWN]] = -torch.inf
        totals = logprobs.reshape(-1, 1) + logits.float().log_softmax(dim=-1)
        ranked = totals.view(batch_size, -1).sort(dim=1, descending=True, stable=True)
        values = ranked.values[:, : postprocess.beam_size]
        order = ranked.indices[:, : postprocess.beam_size]
        slots = torch.arange(values.shape[1], device=device)
        grown = (slots < room) & (values > -torch.inf)
        parents, words = order // logits.shape[1], order % logits.shape[1]
        goes_on = grown & (words != END)
        if between_looks > 1 or not torch.equal(goes_on, grown):
            # Those that go on stand first, so that the others can be left off
            going_first = (~goes_on).sort(dim=1, stable=True).indices
            values, words, parents, grown, goes_on = (
                each.gather(1, going_first) for each in (values, words, parents, grown, goes_on)
            )
            ended = grown & ~goes_on
            best = best.updated(ended, values, length, postprocess.length_penalty)
            room = room - ended.sum(dim=1, keepdim=True)
        steps.append(_Step(words, parents, attention.view(batch_size, num_slots, -1)))
        logprobs = torch.where(goes_on, values, -torch.inf)
        if length % between_looks == 0:
            num_going_on = int(goes_on.sum(dim=1).max())
            if num_going_on == 0:
                break
            logprobs = logprobs[:, :num_going_on]
        num_kept = logprobs.shape[1]
        tokens = words[:, :num_kept].flatten()
        rows = (images * num_slots + parents[:, :num_kept]).flatten()
        state = DecoderState(*(each[rows] for each in state))
    # Where no sentence has ended, the best of those that were cut
    cut = best.updated(logprobs > -torch.inf, logprobs, len(steps), postprocess.length_penalty)
    return _sentences(steps, best.where(best.score > -torch.inf, cut))


def _words_between_looks(device: torch.device) -> int:
    """After how many words it is asked whether all sentences have ended.

    A GPU is waited for at each look, and computes on for sentences that have ended between two.
    """
    return 1 if device.type == "cpu" else 8


def _repeated(features: Tensor, num_slots: int) -> Tensor:
    """(B, L, C) for each of `num_slots` sentences per image; (1, L, C) serves any number."""
    return features if len(features) == 1 else features.repeat_interleave(num_slots, dim=0)


class _Step(NamedTuple):
    """One word of the search, for B images and the W sentences of each.

    Attributes:
        words: (B, W) by which the sentences were continued.
        parents: (B, W) the slots that they were in before.
        attention: (B, W before, L).
    """

    words: Tensor
    parents: Tensor
    attention: Tensor


class _Best(NamedTuple):
    """The best sentence so far of B images: (B,) each; a score of -inf stands for none."""

    score: Tensor
    logprob: Tensor
    length: Tensor
    slot: Tensor

    @classmethod
    def none(cls, batch_size: int, device: torch.device) -> Self:
        zeros = torch.zeros(batch_size, dtype=torch.float64, device=device)
        return cls(zeros - torch.inf, zeros, zeros, zeros)

    def updated(
        self, candidates: Tensor, logprobs: Tensor, length: int, length_penalty: float
    ) -> "_Best":
        """With those of (B, W) sentences of one length that are candidates, if they are better."""
        scores = logprobs.double() / length**length_penalty
        score, slot = torch.where(candidates, scores, -torch.inf).max(dim=1)
        logprob = logprobs.gather(1, slot[:, None])[:, 0]
        one = _Best(score, logprob.double(), torch.full_like(score, length), slot.double())
        return self.where(self.score >= score, one)

    def where(self, condition: Tensor, other: "_Best") -> "_Best":
        """Itself for images for which it is so, else the other."""
        return _Best(*(torch.where(condition, a, b) for a, b in zip(self, other, strict=True)))


def _sentences(steps: Sequence[_Step], best: _Best) -> list[Hypothesis]:
    """Follow the best sentences back from their ends; everything comes in one copy."""
    num_steps, batch_size = len(steps), len(best.slot)
    width = max(step.words.shape[1] for step in steps)
    table = torch.stack(
        [
            F.pad(each, (0, width - each.shape[1]))
            for step in steps
            for each in (step.words, step.parents)
        ]
    )
    fetched = torch.cat((table.double().flatten(), torch.stack(best).flatten())).cpu()
    words, parents = fetched[: table.numel()].view(num_steps, 2, batch_size, width).long().unbind(1)
    _, logprobs, lengths, slots = fetched[table.numel() :].view(4, batch_size)
    images = torch.arange(batch_size)
    slot = slots.long()
    tokens = torch.zeros(batch_size, num_steps, dtype=torch.int64)
    seen_from = torch.zeros(batch_size, num_steps, dtype=torch.int64)
    for step in reversed(range(num_steps)):
        reached = step < lengths
        tokens[:, step] = words[step, images, slot]
        seen_from[:, step] = torch.where(reached, parents[step, images, slot], 0)
        slot = torch.where(reached, seen_from[:, step], slot)
    device = steps[0].attention.device
    seen_from = seen_from.to(device, non_blocking=True)
    attention = torch.stack(
        [
            step.attention[torch.arange(batch_size, device=device), seen_from[:, index]].float()
            for index, step in enumerate(steps)
        ],
        dim=1,
    )
    return [
        Hypothesis(tuple(mine[:length].tolist()), logprob, looked[:length])
        for mine, length, logprob, looked in zip(
            tokens, lengths.long().tolist(), logprobs.tolist(), attention, strict=True
        )
    ]


def caption_outputs(
    module: nn.Module, outputs: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[CaptionOutput]:
    """Describe the images; on the CPU one by one, so that none depends on the batch's size.

    Args:
        module: the `Captioner` that gave the outputs.
        outputs: (B, L, C) features.
        spec: with the vocabulary and a `CaptionPostprocess`.
        canvas: not used.
    """
    model = cast("Captioner", module)
    postprocess = cast("CaptionPostprocess", spec.postprocess)
    return [
        CaptionOutput(
            text=_join(each.tokens, spec.vocabulary),
            logprob=each.logprob,
            num_tokens=len(each.tokens),
        )
        for piece in pieces(len(outputs), outputs.device)
        for each in beam_search(model, outputs[piece], postprocess)
    ]
