"""Agreement of clusters with classes, by scikit-learn and SciPy; and RankMe."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn import metrics

import rank
from common import U, draws

PATH = "pauc-cluster/tests/golden/metrics.json"

# Scores are ratios of entropies over at most 10 x 12 cells or 500 samples. AMI sums the expected information
# over the possible overlaps of a row and a column, 25 000 in all, and subtracts it in the numerator and the
# denominator of a ratio of size 1.
TOLERANCE = 25_000 * U
FLOOR = 1.0


def scores(name, labels, clusters):
    """All scores of one case."""
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    counts = metrics.cluster.contingency_matrix(labels, clusters)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    homogeneity, completeness, v_measure = metrics.homogeneity_completeness_v_measure(labels, clusters)
    return dict(
        case=name,
        labels=labels,
        clusters=clusters,
        nmi=metrics.normalized_mutual_info_score(labels, clusters),
        ami=metrics.adjusted_mutual_info_score(labels, clusters),
        ari=metrics.adjusted_rand_score(labels, clusters),
        homogeneity=homogeneity,
        completeness=completeness,
        v_measure=v_measure,
        hungarian_accuracy=matched / len(labels),
        purity=counts.max(0).sum() / len(labels),
    )


def make():
    """Chance, a perfect clustering, a single cluster, one cluster per sample, and a good clustering with noise."""
    d = draws()
    five = np.repeat(np.arange(4), 5)
    return dict(
        clustering=[
            scores("random", d["random_labels"], d["random_clusters"]),
            scores("permuted_perfect", five, (five + 2) % 4),
            scores("one_cluster", d["one_cluster_labels"], np.zeros(30, int)),
            scores("all_singletons", np.repeat(np.arange(3), 4), np.arange(12)),
            scores("correlated", d["correlated_labels"], d["correlated_clusters"]),
        ],
        rank_me=rank.case(),
    )
