from collections import Counter

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.zoo.ngrams import KneserNey, discounts

N_VOCAB, BEGIN = 6, 0


def text(seed: int, n: int = 400) -> np.ndarray:
    """Tokens 1 to 5 with some order in them: mostly a step onward."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([1, 1, 1, 2, 4], size=n)
    return 1 + np.cumsum(steps) % 5


class Naive:
    """Modified Kneser-Ney as the paper writes it, with dictionaries and one word at a time."""

    def __init__(self, documents: list[np.ndarray], order: int) -> None:
        self.order = order
        raw: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            padded = [BEGIN] * (order - 1) + list(map(int, document))
            raw.update(tuple(padded[i : i + order]) for i in range(len(document)))
        self.counts = {order: raw}
        for k in range(order - 1, 0, -1):
            self.counts[k] = Counter(gram[1:] for gram in self.counts[k + 1])
        self.discounts = {k: discounts(np.array(list(c.values()))) for k, c in self.counts.items()}

    def p(self, history: tuple[int, ...], word: int) -> float:
        k = len(history) + 1
        below = 1 / N_VOCAB if k == 1 else self.p(history[1:], word)
        follow = {gram[-1]: c for gram, c in self.counts[k].items() if gram[:-1] == history}
        total = sum(follow.values())
        if not total:
            return below
        d = self.discounts[k]
        left_over = sum(d[min(c, 3)] for c in follow.values()) / total
        c = follow.get(word, 0)
        return (c - d[min(c, 3)]) / total + left_over * below


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_equal_a_naive_implementation(order):
    documents, unseen = [text(0), text(1, 50), text(2, 1)], text(3, 60)
    model, naive = KneserNey(documents, N_VOCAB, order, BEGIN), Naive(documents, order)
    padded = [BEGIN] * (order - 1) + list(map(int, unseen))
    expected = [naive.p(tuple(padded[i : i + order - 1]), padded[i + order - 1]) for i in range(len(unseen))]
    np.testing.assert_allclose(model.probabilities(model.keys(unseen)), expected, rtol=1e-12)
    assert model.bits(unseen) == pytest.approx(-np.log2(expected).sum())


@pytest.mark.parametrize("order", [1, 2, 4])
def test_each_history_has_a_distribution_even_one_never_seen(order):
    model = KneserNey([text(0)], N_VOCAB, order, BEGIN)
    histories = np.arange(N_VOCAB ** (order - 1))
    keys = histories[:, None] * N_VOCAB + np.arange(N_VOCAB)
    p = model.probabilities(keys.ravel()).reshape(keys.shape)
    np.testing.assert_allclose(p.sum(1), 1)
    assert p.min() > 0


def test_continuation_counts_prefer_words_of_many_histories():
    # 5 is frequent, but only ever after 4: where nothing is known of the history it must not be expected.
    documents = [np.array([4, 5] * 30 + [1, 2, 3, 2, 1, 3, 1, 2, 2, 3, 3, 1, 1])]
    bigram = KneserNey(documents, N_VOCAB, 2, BEGIN)
    unigram = KneserNey(documents, N_VOCAB, 1, BEGIN)
    unseen = 0 * N_VOCAB + np.array([2, 5])  # after BEGIN only 4 was seen
    two, five = bigram.probabilities(unseen)
    assert five < 1.01 * two
    two, five = unigram.probabilities(np.array([2, 5]))
    assert five > 3 * two  # control: by plain frequency it would be


def test_longer_histories_help_on_text_with_order_and_not_on_noise():
    held_out = text(9)
    bits = [KneserNey([text(0, 4000)], N_VOCAB, order, BEGIN).bits(held_out) for order in (1, 2)]
    assert bits[1] < 0.8 * bits[0]
    rng = np.random.default_rng(0)
    noise, more = rng.integers(1, 6, size=4000), rng.integers(1, 6, size=400)
    bits = [KneserNey([noise], N_VOCAB, order, BEGIN).bits(more) for order in (1, 2)]
    assert bits[1] > 0.99 * bits[0]


def test_discounts_are_the_papers():
    counts = np.repeat([1, 2, 3, 4], [8, 4, 2, 1])  # n1 .. n4
    y = 8 / (8 + 2 * 4)
    np.testing.assert_allclose(discounts(counts), [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2])
    assert discounts(np.array([7]))[1:].tolist() == [0.75] * 3


def test_what_cannot_be_numbered_is_refused():
    with pytest.raises(UserError, match="below 2 \\*\\* 63"):
        KneserNey([text(0)], 2**16, 4)
    with pytest.raises(UserError, match="at least one token"):
        KneserNey([np.empty(0, np.int64)], 5, 2)


def test_documents_do_not_run_into_each_other():
    apart, joined = KneserNey([np.array([1, 2]), np.array([3, 4])], 6, 2), KneserNey([np.array([1, 2, 3, 4])], 6, 2)
    key = np.array([2 * 6 + 3])
    assert apart.probabilities(key) < joined.probabilities(key)
