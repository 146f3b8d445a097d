import itertools

import pytest
import torch

from pixelmill.configs.schema import CaptionPostprocess
from pixelmill.models import captioning
from pixelmill.models.captioning import (
    END,
    PAD,
    START,
    UNKNOWN,
    beam_search,
    build_vocabulary,
    caption_loss,
    caption_outputs,
    encode_caption,
)
from pixelmill.models.losses import weighted_sum
from pixelmill.models.show_and_tell import ShowAndTell
from pixelmill.models.show_attend_tell import ShowAttendTell
from pixelmill.models.targets import CaptionTarget


def attending() -> ShowAttendTell:
    return ShowAttendTell(7, width=8, depths=(1, 1), embed_dim=8, hidden_dim=16, attention_dim=8)


def telling() -> ShowAndTell:
    return ShowAndTell(7, "mobilenet_v3_large", embed_dim=8, hidden_dim=16)


@pytest.fixture(params=[attending, telling])
def model(request):
    torch.manual_seed(1)
    model = request.param().eval()
    with torch.no_grad():
        # decided enough for the search to have something to find
        model.classifier.weight.mul_(6)
        model.word_embedding.weight.mul_(3)
    return model


@pytest.fixture
def features(model):
    with torch.no_grad():
        return model(torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)))


def sentence_logprob(model, features, tokens):
    """Sum over the words, by teacher forcing; impossible words take part as in the search."""
    keys = model.keys(features[None])
    state, last, total = model.start(features[None]), START, 0.0
    for token in tokens:
        logits, _, state = model.step(features[None], keys, torch.tensor([last]), state)
        logits[:, [PAD, START, UNKNOWN]] = -torch.inf
        total += float(logits.log_softmax(dim=-1)[0, token])
        last = token
    return total


def test_vocabulary_orders_by_count_then_name_and_leaves_rare_words_out():
    vocabulary = build_vocabulary(["A dog, a cat.", "a cat and a dog", "a fox, a cow"])
    assert vocabulary == ("<pad>", "<start>", "<end>", "<unknown>", "a", ",", "cat", "dog")


def test_a_caption_becomes_tokens_between_start_and_end():
    vocabulary = build_vocabulary(["a dog, a cat"] * 2)
    tokens = encode_caption("A dog, a zebra!", vocabulary).tolist()
    words = [vocabulary[token] for token in tokens]
    assert words == ["<start>", "a", "dog", ",", "a", "<unknown>", "<end>"]


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_a_wide_beam_finds_the_best_of_all_sentences(model, features, penalty):
    postprocess = CaptionPostprocess(beam_size=64, max_tokens=3, length_penalty=penalty)
    words = [token for token in range(7) if token not in (PAD, START, UNKNOWN, END)]
    sentences = [
        (*start, END) for length in range(3) for start in itertools.product(words, repeat=length)
    ]
    with torch.no_grad():
        scores = {
            tokens: sentence_logprob(model, features[0], tokens) / len(tokens) ** penalty
            for tokens in sentences
        }
        found = beam_search(model, features[:1], postprocess)[0]
    best = max(scores, key=scores.__getitem__)
    assert found.tokens == best
    assert found.logprob == pytest.approx(scores[best] * len(best) ** penalty, abs=1e-4)


def test_a_beam_of_one_takes_the_best_word_each_time(model, features):
    with torch.no_grad():
        (found,) = beam_search(model, features[:1], CaptionPostprocess(beam_size=1, max_tokens=5))
        tokens = []
        while len(tokens) < 5 and END not in tokens:
            scores = {
                token: sentence_logprob(model, features[0], (*tokens, token))
                for token in (END, 4, 5, 6)
            }
            tokens.append(max(scores, key=scores.__getitem__))
    assert list(found.tokens) == tokens


def test_a_sentence_is_cut_at_the_longest_allowed(model, features):
    with torch.no_grad():
        model.classifier.bias[END] = -100
        (found,) = beam_search(model, features[:1], CaptionPostprocess(max_tokens=4))
    assert len(found.tokens) == 4
    assert END not in found.tokens


def test_attention_is_a_share_per_place_and_token(model, features):
    with torch.no_grad():
        (found,) = beam_search(model, features[:1], CaptionPostprocess(max_tokens=6))
    assert found.attention.shape == (len(found.tokens), features.shape[1])
    torch.testing.assert_close(found.attention.sum(dim=1), torch.ones(len(found.tokens)))


def test_attention_is_float32_whatever_the_model_computes_in(model, features):
    few = CaptionPostprocess(beam_size=2)
    (found,) = beam_search(model.bfloat16(), features[:1].bfloat16(), few)
    assert found.attention.dtype == torch.float32


def search_with_lists(model, features, postprocess) -> tuple[tuple[int, ...], float]:
    """The same search, sentence by sentence."""
    features = features[None]
    keys, state = model.keys(features), model.start(features)
    tokens, logprobs = torch.tensor([START]), torch.zeros(1)
    alive: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[tuple[tuple[int, ...], float]] = []
    for _ in range(postprocess.max_tokens):
        logits, _, state = model.step(features, keys, tokens, state)
        logits[:, [PAD, START, UNKNOWN]] = -torch.inf
        totals = (logprobs[:, None] + logits.log_softmax(dim=-1)).flatten()
        best, order = totals.sort(descending=True, stable=True)
        beam = postprocess.beam_size - len(finished)
        chosen = order[:beam][best[:beam] > -torch.inf]
        rows, words = chosen // logits.shape[1], chosen % logits.shape[1]
        grown = [
            ((*alive[row][0], int(word)), float(total))
            for row, word, total in zip(rows, words, best, strict=False)
        ]
        finished += [each for each in grown if each[0][-1] == END]
        alive = [each for each in grown if each[0][-1] != END]
        if not alive:
            break
        going_on = words != END
        tokens, logprobs = words[going_on], totals[chosen][going_on]
        state = type(state)(*(each[rows[going_on]] for each in state))
    return max(
        finished or alive, key=lambda each: each[1] / len(each[0]) ** postprocess.length_penalty
    )


@pytest.mark.parametrize("beam_size", [1, 2, 3, 10, 64])
@pytest.mark.parametrize("end", [-3.0, 0.0, 1.5])
def test_the_search_finds_bit_by_bit_what_one_with_lists_finds(model, features, beam_size, end):
    postprocess = CaptionPostprocess(beam_size=beam_size, max_tokens=7)
    with torch.no_grad():
        model.classifier.bias[END] += end
        for each in features:
            (found,) = beam_search(model, each[None], postprocess)
            assert (found.tokens, found.logprob) == search_with_lists(model, each, postprocess)


@pytest.mark.parametrize("end", [-3.0, 0.0, 1.5])
def test_a_batch_searched_at_once_as_on_a_gpu_finds_the_same_sentences(
    model, features, end, monkeypatch
):
    postprocess = CaptionPostprocess(beam_size=3, max_tokens=7)
    with torch.no_grad():
        model.classifier.bias[END] += end
        alone = [beam_search(model, each[None], postprocess)[0] for each in features]
        monkeypatch.setattr(captioning, "_words_between_looks", lambda device: 3)
        together = beam_search(model, features, postprocess)
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        torch.testing.assert_close(one.attention, other.attention)


def test_captions_do_not_depend_on_batch_mates(model, features, make_spec):
    spec = make_spec(
        "captioning",
        classes=(),
        vocabulary=("<pad>", "<start>", "<end>", "<unknown>", "one", "two", ","),
        postprocess=CaptionPostprocess(max_tokens=6),
    )
    with torch.no_grad():
        together = caption_outputs(model, features, spec, (32, 48))
        alone = [caption_outputs(model, each[None], spec, (32, 48))[0] for each in features]
    assert together == alone
    assert all(0 < each.num_tokens <= 6 and each.logprob < 0 for each in together)


def test_every_parameter_learns(model):
    model.train()
    targets = [
        CaptionTarget(torch.tensor([START, 4, 5, END])),
        CaptionTarget(torch.tensor([START, 6, END])),
    ]
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    terms = caption_loss(model, model(images), targets)
    weighted_sum(terms, {}).backward()
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert idle == []


def test_the_loss_is_the_mean_surprise_per_word_whatever_the_padding(model, features):
    long, short = (START, 4, 5, 6, END), (START, 6, END)
    targets = [CaptionTarget(torch.tensor(tokens)) for tokens in (long, short)]
    with torch.no_grad():
        loss = caption_loss(model, features, targets)["cross_entropy"]
        surprise = 0.0
        for each, tokens in zip(features, (long, short), strict=True):
            keys, state = model.keys(each[None]), model.start(each[None])
            for last, token in itertools.pairwise(tokens):
                logits, _, state = model.step(each[None], keys, torch.tensor([last]), state)
                surprise -= float(logits.log_softmax(dim=-1)[0, token])
    assert float(loss) == pytest.approx(surprise / 6, rel=1e-4)
