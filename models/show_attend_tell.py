"""Show, Attend and Tell: captions by a recurrent decoder that looks at one place after another.

Kelvin Xu, Jimmy Ba, Ryan Kiros, Kyunghyun Cho, Aaron Courville, Ruslan Salakhutdinov, Richard
Zemel, Yoshua Bengio: Show, Attend and Tell: Neural Image Caption Generation with Visual Attention,
ICML 2015, https://arxiv.org/abs/1502.03044, section 3 with the soft attention of 4.2.

Differences: the small residual backbone of `backbone.py`, trained along, instead of a fixed VGG;
a learnt embedding of the row and column is added to each annotation vector, because so small a
backbone knows little of where it is; the output layer reads state, context and last word by one
linear map each as in equation 7, without the inner embedding of their sum; beam search divides the
log probability by the length to a power (Wu et al., 2016, without the coverage term).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.configs.schema import CaptionPostprocess
from pixelmill.models.backbone import ResidualBackbone
from pixelmill.models.interface import CaptionOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import CaptionTarget, Target

__all__ = [
    "END",
    "PAD",
    "START",
    "UNKNOWN",
    "Hypothesis",
    "ShowAttendTell",
    "beam_search",
    "build_vocabulary",
    "caption_loss",
    "caption_outputs",
    "encode_caption",
]

# The first tokens of every vocabulary.
PAD, START, END, UNKNOWN = range(4)
_SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")

# Weight of the penalty on places that the sentence never looked at; lambda of equation 14.
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


class _State(NamedTuple):
    """Of the recurrent cell, (N, D) each."""

    hidden: Tensor
    memory: Tensor


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sentence that the search found.

    Attributes:
        tokens: without the start token; the end token is the last one if the sentence ended
            before it became too long.
        logprob: natural logarithm of its probability.
        attention: (T, L) float32, the share that each of the L places had in each token.
    """

    tokens: tuple[int, ...]
    logprob: float
    attention: Tensor


class ShowAttendTell(nn.Module):
    """An image encoder and the decoder that describes what it sees.

    Args:
        vocabulary_size: V, with the four tokens that every vocabulary starts with.
        width: channels of the backbone's first stage.
        depths: blocks per stage of the backbone; its last stage gives the annotation vectors.
        embed_dim: of a word.
        hidden_dim: of the decoder's state.
        attention_dim: of the space in which state and annotation vectors are compared.
        max_side: most rows and columns of annotation vectors.
        dropout: of the decoder's output layer, in training.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int = 32,
        depths: Sequence[int] = (1, 2, 2),
        embed_dim: int = 128,
        hidden_dim: int = 256,
        attention_dim: int = 128,
        max_side: int = 32,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.backbone = ResidualBackbone(width, depths)
        channels = self.backbone.channels[-1]
        self.row_embedding = nn.Parameter(torch.zeros(max_side, channels))
        self.column_embedding = nn.Parameter(torch.zeros(max_side, channels))
        self.word_embedding = nn.Embedding(vocabulary_size, embed_dim)
        self.initial_hidden = nn.Linear(channels, hidden_dim)
        self.initial_memory = nn.Linear(channels, hidden_dim)
        self.attend_features = nn.Linear(channels, attention_dim)
        self.attend_hidden = nn.Linear(hidden_dim, attention_dim)
        self.attend_score = nn.Linear(attention_dim, 1)
        self.gate = nn.Linear(hidden_dim, 1)
        self.cell = nn.LSTMCell(embed_dim + channels, hidden_dim)
        self.from_hidden = nn.Linear(hidden_dim, embed_dim)
        self.from_context = nn.Linear(channels, embed_dim)
        self.classifier = nn.Linear(embed_dim, vocabulary_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, L, C) annotation vectors, L = rows x columns."""
        x = self.backbone(images)[-1]
        rows, columns = x.shape[-2:]
        place = self.row_embedding[:rows, None] + self.column_embedding[None, :columns]
        return (x.permute(0, 2, 3, 1) + place).flatten(1, 2)

    def start(self, features: Tensor) -> _State:
        """The state before the first word, from the mean annotation vector (section 3.1.2)."""
        mean = features.mean(dim=1)
        return _State(self.initial_hidden(mean).tanh(), self.initial_memory(mean).tanh())

    def step(
        self, features: Tensor, keys: Tensor, tokens: Tensor, state: _State
    ) -> tuple[Tensor, Tensor, _State]:
        """Read one word and predict the next.

        Args:
            features: (N, L, C) annotation vectors, or (1, L, C) for all.
            keys: `attend_features` of them.
            tokens: (N,) int64, the last word.
            state: of N sentences.

        Returns:
            (N, V) logits of the next word, (N, L) attention weights, and the next state.
        """
        words = self.word_embedding(tokens)
        energy = (keys + self.attend_hidden(state.hidden)[:, None]).tanh()
        attention = self.attend_score(energy).squeeze(-1).softmax(dim=-1)
        context = (attention[..., None] * features).sum(dim=1)
        context = self.gate(state.hidden).sigmoid() * context
        next_state = _State(*self.cell(torch.cat((words, context), dim=1), state))
        output = words + self.from_hidden(next_state.hidden) + self.from_context(context)
        return self.classifier(self.dropout(output)), attention, next_state


def caption_loss(
    module: nn.Module, outputs: Tensor, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Cross-entropy of each next word given the true ones before it.

    Args:
        module: the `ShowAttendTell` that gave the outputs.
        outputs: (B, L, C) annotation vectors.
        targets: `CaptionTarget` per image.

    Returns:
        Scalars "cross_entropy", per word, and "attention", the penalty of equation 14.
    """
    model = cast("ShowAttendTell", module)
    sentences = nn.utils.rnn.pad_sequence(
        [cast("CaptionTarget", target).tokens for target in targets],
        batch_first=True,
        padding_value=PAD,
    )
    features = outputs.float()
    keys = model.attend_features(features)
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
    model: ShowAttendTell, features: Tensor, postprocess: CaptionPostprocess
) -> Hypothesis:
    """The best sentence that a search of `beam_size` parallel sentences finds.

    Deterministic; of equally probable words the one that stands first in the vocabulary is taken.
    A beam of 1 is greedy search.

    Args:
        model: in evaluation mode.
        features: (L, C) annotation vectors of one image.
        postprocess: beam size, longest sentence and length penalty.
    """
    features = features[None]
    keys = model.attend_features(features)
    tokens = torch.tensor([START], device=features.device)
    state = model.start(features)
    logprobs = torch.zeros(1, device=features.device)
    alive = [Hypothesis((), 0.0, torch.empty(0, features.shape[1]))]
    finished: list[Hypothesis] = []
    for _ in range(postprocess.max_tokens):
        logits, attention, state = model.step(features, keys, tokens, state)
        # only words and the end are ever said
        logits[:, [PAD, START, UNKNOWN]] = -torch.inf
        totals = logprobs[:, None] + logits.float().log_softmax(dim=-1)
        beam = postprocess.beam_size - len(finished)
        best, order = totals.flatten().sort(descending=True, stable=True)
        chosen = order[:beam][best[:beam] > -torch.inf]
        rows, words = chosen // logits.shape[1], chosen % logits.shape[1]
        grown = [
            Hypothesis(
                (*alive[row].tokens, word), logprob, torch.cat((alive[row].attention, weights))
            )
            for row, word, logprob, weights in zip(
                rows.tolist(),
                words.tolist(),
                best[: len(rows)].tolist(),
                attention[rows, None].cpu(),
                strict=True,
            )
        ]
        finished += [each for each in grown if each.tokens[-1] == END]
        alive = [each for each in grown if each.tokens[-1] != END]
        if not alive:
            break
        going_on = words != END
        tokens = words[going_on]
        state = _State(*(each[rows[going_on]] for each in state))
        logprobs = totals.flatten()[chosen][going_on]
    return max(
        finished or alive,
        key=lambda each: each.logprob / len(each.tokens) ** postprocess.length_penalty,
    )


def caption_outputs(
    module: nn.Module, outputs: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[CaptionOutput]:
    """Describe the images one by one, so that no image's sentence depends on another's.

    Args:
        module: the `ShowAttendTell` that gave the outputs.
        outputs: (B, L, C) annotation vectors.
        spec: with the vocabulary and a `CaptionPostprocess`.
        canvas: not used.
    """
    model = cast("ShowAttendTell", module)
    postprocess = cast("CaptionPostprocess", spec.postprocess)
    found = [beam_search(model, features, postprocess) for features in outputs]
    return [
        CaptionOutput(
            text=_join(each.tokens, spec.vocabulary),
            logprob=each.logprob,
            num_tokens=len(each.tokens),
        )
        for each in found
    ]
