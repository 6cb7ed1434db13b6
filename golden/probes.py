"""Weighted votes of nearest neighbors, in NumPy; and RankMe."""

import numpy as np

import rank
from common import U, draws, unit

PATH = "pauc-probes/tests/golden/metrics.json"

# A vote is a sum of up to 50 weights exp(cosine / T). A cosine is a sum of 6 products of normalized numbers:
# 20 operations, whose error exp amplifies by 1 / 0.07. RankMe's decomposition takes 40 x 5 x 5 operations.
TOLERANCE = max(50 + 20 / 0.07, 40 * 5 * 5) * U
FLOOR = 1.0


def votes(train, labels, test, k, temperature):
    """For each test row, the sum over its k nearest of exp(cosine / temperature), by class."""
    cosines = unit(test) @ unit(train).T
    classes = labels.max() + 1
    made = np.zeros((len(test), classes))
    for row, cosine in zip(made, cosines):
        nearest = np.argsort(-cosine, kind="stable")[:k]
        np.add.at(row, labels[nearest], np.exp(cosine[nearest] / temperature))
    return made


def case(k, temperature):
    """One number of neighbors and one temperature. If k exceeds the number of rows, all rows are used."""
    d = draws()
    train, labels, test = d["train"], d["train_labels"], d["test"]
    made = votes(train, labels, test, k, temperature)
    return dict(
        case=f"knn/cosine/k{k}/t{temperature}",
        train=train,
        labels=labels,
        test=test,
        predictions=made.argmax(1),
        votes=made,
        k=k,
        temperature=temperature,
    )


def make():
    """Few neighbors, many, and more than there are rows."""
    return dict(knn=[case(5, 0.07), case(20, 0.1), case(200, 0.1)], rank_me=rank.case())
