"""Concentrations of prototypes, by the procedure of the PCL authors, in NumPy."""

import numpy as np

from common import U, draws

PATH = "pauc-cluster/tests/golden/concentration.json"

# A mean of up to 20 distances of 6 numbers each, its logarithm, the quantile and the mean over 8 clusters.
# All terms are positive, so nothing cancels, except in the centroids' coordinates, which are means of unit
# rows.
TOLERANCE = 60 * U
FLOOR = 1.0

CLUSTERS = 8


def clusters():
    """Features, assignments and cluster means: cluster 5 has one member, 6 has two and 7 none."""
    d = draws()
    features, assignments = d["features"], d["assignments"]
    five = np.flatnonzero(assignments == 5)
    assignments[five[1:]] = 4
    assignments = np.concatenate([assignments, [6, 6]])
    members = [features[assignments == j] for j in range(CLUSTERS)]
    centroids = np.stack([m.mean(0) if len(m) else np.zeros(features.shape[1]) for m in members])
    return features, assignments, centroids


def concentration(features, assignments, centroids, temperature, alpha):
    """phi = mean distance / log(members + alpha). A cluster of fewer than two members gets the largest of the others.

    Then all are clipped to the 10th and 90th percentile, and scaled to have the temperature as mean.
    """
    distances = np.linalg.norm(features - centroids[assignments], axis=1)
    phi = np.zeros(len(centroids))
    sizes = np.bincount(assignments, minlength=len(centroids))
    for j in np.flatnonzero(sizes > 1):
        phi[j] = distances[assignments == j].mean() / np.log(sizes[j] + alpha)
    phi[sizes < 2] = phi.max()
    phi = np.clip(phi, *np.percentile(phi, [10, 90]))
    return temperature * phi / phi.mean()


def make():
    """The same clusters at two temperatures."""
    features, assignments, centroids = clusters()
    return [
        dict(
            case="concentration",
            source="salesforce/PCL procedure; distances to the UN-normalised centroid, "
            "numpy linear-interpolation percentiles",
            config=dict(temperature=t, alpha=10),
            inputs=dict(features=features, assignments=assignments, centroids=centroids),
            outputs=dict(concentration=concentration(features, assignments, centroids, t, 10)),
        )
        for t in (0.1, 0.2)
    ]
