"""Values and gradients of loss terms: closed forms in PyTorch in float64, with gradients by autograd.

Inputs are the raw projector outputs of two views, `view0` and `view1`, or of a momentum branch, `key1`, which has no
gradient. Terms of unit embeddings normalize them, so gradients are with respect to the raw outputs. Queues and
prototypes are unit rows. Every matrix is a `wave`.
"""

import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize

from common import U, unit, wave

PATH = "pauc-losses/tests/golden/terms.json"

# A cosine of rows of 6 numbers takes 10 operations. A softmax divides differences of up to 2 by at least
# 0.05, which amplifies their error by 40; means and sums of at most 100 numbers follow. Small losses and
# gradients result from cancellation of numbers of size one.
TOLERANCE = (10 * 40 + 100) * U
FLOOR = 1.0

view0, view1, queue = wave(8, 6, 0.1), wave(8, 6, 0.35), unit(wave(16, 6, 1.0))
views = dict(view0=view0, view1=view1)
keys = dict(view0=view0, key1=view1)
labels = [0, 1, 2, 0, 1, 2, 0, 3]
four = {"prototypes.0": unit(wave(4, 6, 0.7)), "assignments.0": labels}
clustered = {**keys, **four}


def tensors(inputs):
    """The inputs as tensors, and those with gradients: online views, and learned prototypes if there are any."""
    made = {
        key: torch.as_tensor(v, dtype=torch.int64 if isinstance(v[0], int) else torch.float64)
        for key, v in inputs.items()
    }
    learnt = "prototypes.0" in inputs and "assignments.0" not in inputs
    moved = {
        key: v.requires_grad_()
        for key, v in made.items()
        if key.startswith("view") or learnt and key == "prototypes.0"
    }
    return made, moved


def squares(a, b):
    """Squared distances of the rows of a to the rows of b. (The form with products would be inexact for small ones.)"""
    return (a[:, None] - b).square().sum(2)


def pairs(n):
    """The pairs i < j of n."""
    return torch.triu_indices(n, n, 1).unbind()


def off_diagonal(m):
    """The off-diagonal elements of a square matrix."""
    return m[~torch.eye(len(m), dtype=torch.bool)]


def stacked(x):
    """The unit rows of both views, the logits with masked self-pairs, and the row of each sample's other view."""
    z = normalize(torch.cat([x["view0"], x["view1"]]))
    n = len(z)
    return z, torch.eye(n, dtype=torch.bool), (torch.arange(n) + n // 2) % n


def info_nce_in_batch(x, temperature, **_):
    z, self_pairs, partner = stacked(x)
    return cross_entropy((z @ z.T / temperature).masked_fill(self_pairs, -torch.inf), partner)


def info_nce_keys(x, temperature, **_):
    q, k = normalize(x["view0"]), normalize(x["key1"])
    return cross_entropy(q @ k.T / temperature, torch.arange(len(q)))


def info_nce_queue(x, temperature, **_):
    q, k = normalize(x["view0"]), normalize(x["key1"])
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ x["queue"].T], 1) / temperature
    return cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


def dcl(x, temperature):
    z, self_pairs, partner = stacked(x)
    logits = z @ z.T / temperature
    rows = torch.arange(len(z))
    positives = torch.zeros_like(self_pairs)
    positives[rows, partner] = True
    negatives = logits.masked_fill(self_pairs | positives, -torch.inf)
    return (negatives.logsumexp(1) - logits[rows, partner]).mean()


def sup_con(x, temperature):
    z, self_pairs, _ = stacked(x)
    both = torch.cat([x["labels"], x["labels"]])
    same = (both[:, None] == both) & ~self_pairs
    logs = log_softmax((z @ z.T / temperature).masked_fill(self_pairs, -torch.inf), 1)
    return -(logs.masked_fill(~same, 0).sum(1) / same.sum(1)).mean()


def levels(x):
    """(prototypes, assignments, concentrations or None) of every clustering."""
    m = 0
    while f"assignments.{m}" in x:
        yield x[f"prototypes.{m}"], x[f"assignments.{m}"], x.get(f"concentration.{m}")
        m += 1


def proto_nce(x, negatives, negative_ids=(), duplicates=False):
    q, losses = normalize(x["view0"]), []
    for c, s, phi in levels(x):
        logits = q @ c.T / phi
        if negatives == "All":
            losses.append(cross_entropy(logits, s))
        elif duplicates:
            # Candidate i is the prototype of sample i, and so its positive, even if other samples share it.
            candidates = torch.cat([s, torch.tensor(negative_ids)])
            losses.append(cross_entropy(logits[:, candidates], torch.arange(len(q))))
        else:
            unique, position = s.unique(return_inverse=True)
            candidates = torch.cat([unique, torch.tensor(negative_ids)])
            losses.append(cross_entropy(logits[:, candidates], position))
    return sum(losses) / len(losses)


def batch_prototypes(rows, x, rho=0.0):
    """p_j = norm(sum of the members' unit rows + rho c_j), for the prototypes with members."""
    ((c, s, _),) = levels(x)
    z = normalize(rows)
    occupied = s.unique()
    sums = torch.stack([z[s == j].sum(0) for j in occupied])
    return normalize(sums + rho * c[occupied])


def of_distances(squared, alpha):
    """The mean of d^alpha of squared distances."""
    return squared.pow(alpha / 2).mean()


def alignment(x, level, alpha):
    q = normalize(x["view0"])
    if level == "Instances":
        return of_distances((q - normalize(x["view1"])).square().sum(1), alpha)
    if level == "Prototypes":
        online, other = batch_prototypes(x["view0"], x), batch_prototypes(x["key1"], x)
        return of_distances((online - other).square().sum(1), alpha)
    ((c, s, _),) = levels(x)
    if level == "Centroid":
        return of_distances((q - c[s]).square().sum(1), alpha)
    i, j = pairs(len(q))
    i, j = i[s[i] == s[j]], j[s[i] == s[j]]
    return of_distances((q[i] - q[j]).square().sum(1), alpha)


def potential(squared, t):
    """log mean exp(-t d^2) of squared distances."""
    return (-t * squared).exp().mean().log()


def uniformity(x, level, t, rho=0.0, queue=False):
    def among(z):
        i, j = pairs(len(z))
        return (z[i] - z[j]).square().sum(1)

    q = normalize(x["view0"])
    if queue:
        return potential(torch.cat([squares(q, x["queue"]).flatten(), among(q)]), t)
    if level == "Instances":
        return (potential(among(q), t) + potential(among(normalize(x["view1"])), t)) / 2
    if level == "Prototypes":
        return potential(among(batch_prototypes(x["view0"], x, rho)), t)
    ((c, s, _),) = levels(x)
    return potential(squares(q, c)[s[:, None] != torch.arange(len(c))], t)


def covariances(a):
    """1/D times the sum of squared unbiased covariances between different columns."""
    return off_diagonal(torch.cov(a.T)).square().sum() / a.shape[1]


def correlation(x, level, kind, off_diagonal_weight=None):
    if level == "Prototypes":
        a, b = batch_prototypes(x["view0"], x), batch_prototypes(x["key1"], x)
    else:
        assert kind == "Cross", "of instances there is no other case"
        a, b = x["view0"], x["view1"]
    if kind == "Covariance":
        return covariances(a)
    if kind == "Gram":
        return off_diagonal(a @ a.T).square().mean()

    def standardized(v):
        return (v - v.mean(0)) / (v.var(0, correction=0) + 1e-5).sqrt()

    r = standardized(a).T @ standardized(b) / len(a)
    return ((1 - r.diagonal()).square().sum() + off_diagonal_weight * off_diagonal(r).square().sum()) / len(r)


def proto_scatter(x, temperature):
    online, other = batch_prototypes(x["view0"], x), batch_prototypes(x["key1"], x)
    own = torch.eye(len(online), dtype=torch.bool)
    # The candidates of a row: on the diagonal its own prototype of the keys, elsewhere the other online
    # prototypes.
    logits = torch.where(own, (online * other).sum(1, keepdim=True), online @ online.T) / temperature
    return cross_entropy(logits, torch.arange(len(online)))


def vic_reg(x, invariance, variance, covariance):
    def hinge(v):
        return (1 - (v.var(0) + 1e-4).sqrt()).relu().mean()

    a, b = x["view0"], x["view1"]
    return (
        invariance * (a - b).square().mean()
        + variance * (hinge(a) + hinge(b)) / 2
        + covariance * (covariances(a) + covariances(b))
    )


def sinkhorn(scores, epsilon, iterations):
    """Sinkhorn codes: columns are scaled to equal sums and rows to sum one, alternately, rows last."""
    q = (scores / epsilon).exp()
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(0) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


def swapped_assignment(x, temperature, epsilon, iterations):
    scores = [normalize(x[v]) @ x["prototypes.0"].T for v in ("view0", "view1")]
    codes = [sinkhorn(s.detach(), epsilon, iterations) for s in scores]
    return sum(-(codes[v] * log_softmax(scores[1 - v] / temperature, 1)).sum(1).mean() for v in (0, 1)) / 2


def cosine_prediction(x):
    return 2 - 2 * (normalize(x["view0"]) * normalize(x["key1"])).sum(1).mean()


def ko_leo(x):
    z = normalize(x["view0"])
    itself = torch.eye(len(z), dtype=torch.bool)
    nearest = squares(z, z).masked_fill(itself, torch.inf).argmin(1)
    return -((z - z[nearest]).norm(dim=1) + 1e-8).log().mean()


def case(name, source, config, inputs, term):
    """A case: the value and the gradients of the term."""
    x, moved = tensors(inputs)
    options = {"off_diagonal_weight" if key == "off_diagonal" else key: v for key, v in config.items()}
    value = term(x, **options)
    value.backward()
    return dict(
        case=name,
        source=source,
        config=config,
        inputs=inputs,
        value=value,
        grads={key: v.grad for key, v in moved.items()},
    )


def codes(name, source, config):
    """The codes of view 0 alone."""
    scores = unit(view0) @ four["prototypes.0"].T
    return dict(
        case=name,
        source=source,
        config=config,
        inputs=dict(scores=scores),
        value=None,
        outputs=dict(codes=sinkhorn(torch.as_tensor(scores), **config)),
        grads={},
    )


def make():
    """All cases."""
    ntxent = "closed form in torch; agrees with lightly NTXentLoss"
    moco = "MoCo form: positive = own key, negatives = queue only; torch closed form"
    two_sided = [
        case(
            f"info_nce/in_batch_two_sided/t{t}",
            ntxent,
            dict(temperature=t, negatives="InBatch", two_sided=True),
            views,
            info_nce_in_batch,
        )
        for t in (0.07, 0.2, 0.5)
    ]
    queued = [
        case(
            f"info_nce/queue/t{t}",
            moco,
            dict(temperature=t, negatives="Queue"),
            {**keys, "queue": queue},
            info_nce_queue,
        )
        for t in (0.07, 0.2)
    ]
    first = {"view0": view0, **four, "concentration.0": [0.1, 0.2, 0.3, 0.25]}
    second = {
        "prototypes.1": unit(wave(7, 6, 1.4)),
        "assignments.1": [6, 5, 4, 3, 2, 1, 0, 0],
        "concentration.1": [0.1 + 0.05 * j for j in range(7)],
    }
    twelve = {
        "view0": view0,
        "prototypes.0": unit(wave(12, 6, 2.2)),
        "assignments.0": [0, 1, 1, 2, 3, 0, 4, 5],
        "concentration.0": [0.1 + 0.2 * j / 11 for j in range(12)],
    }
    sampled = dict(negatives="Sample", negative_ids=[7, 9, 11])
    sinkhorn_of = dict(epsilon=0.05, iterations=3)
    return [
        *two_sided,
        *queued,
        case(
            "info_nce/in_batch_keys/t0.2",
            "MoCo-v3 form, one direction, no 2*tau factor; torch closed form",
            dict(temperature=0.2, negatives="Keys"),
            keys,
            info_nce_keys,
        ),
        case(
            "dcl/two_sided/t0.2",
            "closed form; agrees with lightly DCLLoss",
            dict(temperature=0.2),
            views,
            dcl,
        ),
        case(
            "sup_con/t0.1",
            "SupCon L_out, both views, no base-temperature factor",
            dict(temperature=0.1),
            {**views, "labels": labels},
            sup_con,
        ),
        case(
            "proto_nce/all_prototypes",
            "PCL equation, every prototype in the denominator, logits / phi_of_that_prototype",
            dict(negatives="All"),
            first,
            proto_nce,
        ),
        case(
            "proto_nce/two_levels_mean",
            "mean over levels m of the all-prototype form",
            dict(negatives="All"),
            {**first, **second},
            proto_nce,
        ),
        case(
            "proto_nce/sampled_unique",
            "denominator = unique positive prototypes of the batch + given negatives",
            sampled,
            twelve,
            proto_nce,
        ),
        case(
            "proto_nce/sampled_pcl_duplicates",
            "salesforce/PCL as coded (duplicate positives are false negatives)",
            {**sampled, "duplicates": True},
            twelve,
            proto_nce,
        ),
        *[
            case(
                f"alignment/instances/alpha{alpha}",
                "Wang & Isola 2020",
                dict(level="Instances", alpha=alpha),
                views,
                alignment,
            )
            for alpha in (1, 2)
        ],
        *[
            case(
                f"uniformity/instances/t{t}",
                "Wang & Isola 2020, mean of both views",
                dict(level="Instances", t=t),
                views,
                uniformity,
            )
            for t in (1, 2, 3)
        ],
        case(
            "uniformity/instances_queue/t2",
            "moco_align_uniform form: log mean over {|q-queue|^2} and {within-batch pairs i<j}",
            dict(level="Instances", t=2, queue=True),
            dict(view0=view0, queue=queue),
            uniformity,
        ),
        case(
            "alignment/prototypes/alpha2",
            "A1: mean_j |p_j - p'_j|^alpha, p online view0, p' momentum view1 (constant)",
            dict(level="Prototypes", alpha=2),
            clustered,
            alignment,
        ),
        case(
            "alignment/to_centroid/alpha2",
            "A2: mean_i |q_i - c_s(i)|^alpha",
            dict(level="Centroid", alpha=2),
            clustered,
            alignment,
        ),
        case(
            "alignment/members/alpha2",
            "A3: mean over pairs i<l sharing a prototype of |q_i - q_l|^2",
            dict(level="Members", alpha=2),
            clustered,
            alignment,
        ),
        case(
            "uniformity/prototypes/t2",
            "U1: log mean_{j<l} exp(-t |p_j - p_l|^2)",
            dict(level="Prototypes", t=2),
            clustered,
            uniformity,
        ),
        case(
            "uniformity/prototypes_rho0.5/t2",
            "U1 with p_j = norm(sum q_i + rho c_j), rho = 0.5",
            dict(level="Prototypes", t=2, rho=0.5),
            clustered,
            uniformity,
        ),
        case(
            "uniformity/to_other_centroids/t2",
            "U2: log mean_{i, j != s(i)} exp(-t |q_i - c_j|^2)",
            dict(level="OtherCentroids", t=2),
            clustered,
            uniformity,
        ),
        case(
            "correlation/prototypes/cross",
            "C1: (1/D)[sum_d (1-R_dd)^2 + lambda sum_{d!=e} R_de^2], columns standardised over prototypes, "
            "biased variance + 1e-5",
            dict(level="Prototypes", kind="Cross", off_diagonal=0.005),
            clustered,
            correlation,
        ),
        case(
            "correlation/prototypes/covariance",
            "C2: VICReg covariance of the prototypes",
            dict(level="Prototypes", kind="Covariance"),
            clustered,
            correlation,
        ),
        case(
            "correlation/prototypes/gram",
            "C3: mean_{j!=l} (p_j . p_l)^2",
            dict(level="Prototypes", kind="Gram"),
            clustered,
            correlation,
        ),
        case(
            "proto_scatter/t0.5",
            "ProPos prototype scattering: positive p_j.p'_j, negatives p_j.p_l online",
            dict(temperature=0.5),
            clustered,
            proto_scatter,
        ),
        case(
            "correlation/instances/cross",
            "Barlow Twins / D (our 1/D), lambda 0.005, eps 1e-5, biased",
            dict(level="Instances", kind="Cross", off_diagonal=0.005),
            views,
            correlation,
        ),
        case(
            "vicreg",
            "official VICReg: 25 mse + 25 * (var_x+var_y)/2 + 1 * (cov_x + cov_y), eps 1e-4, unbiased",
            dict(invariance=25, variance=25, covariance=1),
            views,
            vic_reg,
        ),
        case(
            "swapped_assignment/sinkhorn3",
            "SwAV two-view swapped prediction, prototypes given unit-norm, codes are constants, Sinkhorn 3 "
            "iterations epsilon 0.05",
            dict(temperature=0.1, **sinkhorn_of),
            {**views, "prototypes.0": four["prototypes.0"]},
            swapped_assignment,
        ),
        codes("sinkhorn/codes", "3 iterations, epsilon 0.05", sinkhorn_of),
        case(
            "cosine_prediction",
            "BYOL/SimSiam: 2 - 2 cos(prediction, key), one direction",
            {},
            keys,
            cosine_prediction,
        ),
        case("ko_leo", "KoLeo: -mean_i log(min_{j != i} |z_i - z_j| + 1e-8)", {}, dict(view0=view0), ko_leo),
    ]
