"""Show and Tell: captions by a recurrent decoder that sees the image once, before the first word.

Oriol Vinyals, Alexander Toshev, Samy Bengio, Dumitru Erhan: Show and Tell: A Neural Image Caption
Generator, CVPR 2015, https://arxiv.org/abs/1411.4555, section 3 and figure 3.

Differences: any backbone of torchvision takes the place of GoogLeNet, and is trained along from
the start; its features are averaged over the image.
"""

from typing import cast

import torch
from torch import Tensor, nn

from pixelmill.models.captioning import DecoderState
from pixelmill.models.feature_extractor import build_extractor

__all__ = ["ShowAndTell"]


class ShowAndTell(nn.Module):
    """An image encoder and the decoder that describes what it saw.

    Args:
        vocabulary_size: V, with the four tokens that every vocabulary starts with.
        backbone: of `feature_extractor.EXTRACTORS`.
        embed_dim: of a word, and of the image among them; the paper's is 512.
        hidden_dim: of the decoder's state; the paper's is 512.
        dropout: of the decoder's inputs and outputs, in training.
    """

    def __init__(
        self,
        vocabulary_size: int,
        backbone: str = "inception_v3",
        embed_dim: int = 512,
        hidden_dim: int = 512,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.backbone = build_extractor(backbone)
        self.image_embedding = nn.Linear(self.backbone.channels[-1], embed_dim)
        self.word_embedding = nn.Embedding(vocabulary_size, embed_dim)
        self.cell = nn.LSTMCell(embed_dim, hidden_dim)
        self.classifier = nn.Linear(hidden_dim, vocabulary_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, 1, embed_dim): the image as a first word."""
        x = self.backbone(images)[-1].mean(dim=(2, 3))
        return cast("Tensor", self.image_embedding(x))[:, None]

    def keys(self, features: Tensor) -> Tensor:
        """The features: no step needs any of them."""
        return features

    def grid(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """One place, which is the whole canvas."""
        return 1, 1

    def start(self, features: Tensor) -> DecoderState:
        """The state after reading the image (equation 10)."""
        image = self.dropout(features[:, 0])
        zeros = image.new_zeros(len(image), self.cell.hidden_size)
        return DecoderState(*self.cell(image, (zeros, zeros)))

    def step(
        self, features: Tensor, keys: Tensor, tokens: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Read one word and predict the next (equations 11 and 12).

        Args:
            features: not used, for the image has been read.
            keys: not used.
            tokens: (N,) int64, the last word.
            state: of N sentences.

        Returns:
            (N, V) logits of the next word, (N, 1) ones, and the next state.
        """
        words = self.dropout(self.word_embedding(tokens))
        next_state = DecoderState(*self.cell(words, state))
        logits = self.classifier(self.dropout(next_state.hidden))
        return logits, torch.ones_like(logits[:, :1]), next_state
