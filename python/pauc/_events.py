"""Numbers in the events of `metrics.jsonl`, under the tags that pauc's TensorBoard files have."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, Mapping, Tuple

Event = Mapping[str, Any]
Scalar = Tuple[str, Any]


def scalars(event: Event) -> Dict[str, float]:
    """Returns the numbers of an event by tag, without NaN and infinite numbers."""
    read = _KINDS.get(event.get("event", ""))
    if read is None:
        return {}
    try:
        found = {tag: float(value) for tag, value in read(event) if value is not None}
    except (KeyError, TypeError, ValueError):
        # Of another version of pauc.
        return {}
    return {tag: value for tag, value in found.items() if math.isfinite(value)}


def _step(event: Event) -> Iterator[Scalar]:
    yield "train/loss", event["loss"]
    yield "train/lr", event["lr"]
    yield "train/gradient_norm", event["grad_norm"]
    yield "train/images_per_second", event["images_per_second"]
    for term in event["terms"]:
        yield f"term/{term['name']}", term["value"]
        yield f"chance/{term['name']}", term["chance"]


def _gradients(event: Event) -> Iterator[Scalar]:
    terms = event["terms"]
    for term in terms:
        yield f"gradient/{term['name']}", term["norm"]
    # Earlier versions did not write it.
    yield "gradient/total", event.get("total")
    for term in terms:
        for other, cosine in zip(terms, term["cosines"]):
            yield f"gradient_cosine/{other['name']}/{term['name']}", cosine


def _clustering(event: Event) -> Iterator[Scalar]:
    for level in event["levels"]:
        prefix = f"clusters/k{level['k']}"
        yield f"{prefix}/objective", level["objective"]
        yield f"{prefix}/imbalance", level["imbalance"]
        yield f"{prefix}/empty", level["empty"]
        yield f"{prefix}/concentration", level["concentration_mean"]
        yield f"{prefix}/churn", level.get("churn")


_SUBJECTS = {
    "trained": "probe",
    "random_init": "probe_of_random_init",
    "raw_pixels": "probe_of_raw_pixels",
}


def _probe(event: Event) -> Iterator[Scalar]:
    for metric in event["metrics"]:
        yield f"{_SUBJECTS[event['subject']]}/{metric['name']}", metric["value"]


def _health(event: Event) -> Iterator[Scalar]:
    yield "health/spread", event["spread"]
    yield "health/effective_rank", event["rank"]
    for term in event["terms"]:
        yield f"health/epochs_at_chance/{term['name']}", term["epochs_at_chance"]


def _stages(event: Event) -> Iterator[Scalar]:
    yield "stages/images_per_second", event["images_per_second"]
    for stage in event["stages"]:
        yield f"stages/{stage['name'].replace(' ', '_')}_share", _ratio(stage["seconds"], event["seconds"])
    if event.get("peak_memory_bytes") is not None:
        yield "stages/peak_memory_mib", event["peak_memory_bytes"] / 2**20
    loader = event.get("loader")
    if loader and loader["images"]:
        for part in ("read", "augment", "normalise"):
            yield f"loader/{part}_images_per_second", _ratio(loader["images"], loader[part])


def _ratio(a: Any, b: Any) -> Any:
    return a / b if a is not None and b else None


_KINDS = {
    "step": _step,
    "gradients": _gradients,
    "clustering": _clustering,
    "probe": _probe,
    "health": _health,
    "stages": _stages,
}
