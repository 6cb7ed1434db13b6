"""Shared by the generators: inputs by formula, one stream of random inputs, and serialization."""

import json

import numpy as np

# Half the distance between 1 and the next float64: the relative error of one operation.
U = 2.0**-53


def wave(rows, columns, phase):
    """x_ij = sin(phase + 1.7 i + 0.9 j + 0.3 i j) (1 + 0.1 i): rows of different lengths, none parallel."""
    i, j = np.arange(rows)[:, None], np.arange(columns)
    return np.sin(phase + 1.7 * i + 0.9 * j + 0.3 * i * j) * (1 + 0.1 * i)


def unit(x):
    """The rows of x, scaled to length one."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def draws():
    """The random inputs of concentration, clustering and probes, by name.

    They come from one stream, so the order matters: add new ones at the end.
    """
    rng = np.random.default_rng(100)
    d = {}
    d["features"] = unit(rng.standard_normal((60, 6)))
    d["assignments"] = rng.integers(0, 6, 58)
    d["random_labels"] = rng.integers(0, 5, 80)
    d["random_clusters"] = rng.integers(0, 7, 80)
    d["one_cluster_labels"] = rng.integers(0, 3, 30)
    d["correlated_labels"] = rng.integers(0, 10, 500)
    kept = rng.random(500) < 0.7
    d["correlated_clusters"] = np.where(kept, 3 * d["correlated_labels"] % 10, rng.integers(0, 12, 500))
    d["rank_features"] = rng.standard_normal((40, 5)) * [5.0, 3.0, 1.0, 0.1, 0.01]
    d["train"] = rng.standard_normal((50, 6))
    d["train_labels"] = rng.integers(0, 4, 50)
    d["test"] = rng.standard_normal((15, 6))
    return d


def plain(value):
    """Converts arrays and tensors to lists of Python numbers."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "detach"):
        value = value.detach()
    return value.tolist() if hasattr(value, "tolist") else value


def text(value):
    """JSON with one case per line, so that a changed case is a changed line."""

    def compact(v):
        return json.dumps(v, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def lines(cases):
        return "[\n" + ",\n".join(map(compact, cases)) + "\n]"

    if isinstance(value, list):
        return lines(value) + "\n"

    def field(v):
        return lines(v) if isinstance(v, list) and v and isinstance(v[0], dict) else compact(v)

    return "{\n" + ",\n".join(f"{compact(key)}:{field(v)}" for key, v in value.items()) + "\n}\n"
