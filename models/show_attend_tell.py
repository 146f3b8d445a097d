"""Show, Attend and Tell: captions by a recurrent decoder that looks at one place after another.

Kelvin Xu, Jimmy Ba, Ryan Kiros, Kyunghyun Cho, Aaron Courville, Ruslan Salakhutdinov, Richard
Zemel, Yoshua Bengio: Show, Attend and Tell: Neural Image Caption Generation with Visual Attention,
ICML 2015, https://arxiv.org/abs/1502.03044, section 3 with the soft attention of 4.2.

Differences: the small residual backbone of `backbone.py`, trained along, instead of a fixed VGG;
a learnt embedding of the row and column is added to each annotation vector, because so small a
backbone knows little of where it is; the output layer reads state, context and last word by one
linear map each as in equation 7, without the inner embedding of their sum.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pixelmill.models.backbone import ResidualBackbone
from pixelmill.models.captioning import DecoderState

__all__ = ["ShowAttendTell"]


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

    def keys(self, features: Tensor) -> Tensor:
        """(N, L, C) -> (N, L, attention_dim): what the state is compared with."""
        return cast("Tensor", self.attend_features(features))

    def grid(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of annotation vectors on a canvas (height, width)."""
        stride = self.backbone.strides[-1]
        return -(-canvas[0] // stride), -(-canvas[1] // stride)

    def start(self, features: Tensor) -> DecoderState:
        """The state before the first word, from the mean annotation vector (section 3.1.2)."""
        mean = features.mean(dim=1)
        return DecoderState(self.initial_hidden(mean).tanh(), self.initial_memory(mean).tanh())

    def step(
        self, features: Tensor, keys: Tensor, tokens: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Read one word and predict the next.

        Args:
            features: (N, L, C) annotation vectors, or (1, L, C) for all.
            keys: of them.
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
        next_state = DecoderState(*self.cell(torch.cat((words, context), dim=1), state))
        output = words + self.from_hidden(next_state.hidden) + self.from_context(context)
        return self.classifier(self.dropout(output)), attention, next_state
