"""RankMe, for the files of clustering and of probes."""

import numpy as np

from common import draws


def case():
    """exp of the entropy of the normalized singular values, with 1e-7 added to each."""
    features = draws()["rank_features"]
    sigma = np.linalg.svd(features, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return dict(
        case="rank_me",
        source="RankMe: exp(entropy of singular values / their sum, +1e-7), features not centred",
        features=features,
        value=np.exp(-(p * np.log(p)).sum()),
    )
