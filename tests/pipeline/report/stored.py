"""Stored documents of the shape that the assessing steps write, with made-up numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.stress_verdicts import JUDGED

HOSTILE = "<script>alert('x')</script>"
NAMES = ["sky", HOSTILE, "road & kerb", "car"]
COLORS = np.array([[128, 128, 128], [128, 0, 0], [128, 64, 128], [64, 0, 128]], dtype=np.uint8)
SAMPLERS = ("none", "mc_dropout", "tta")
MEASURES = ("entropy", "least_confidence", "energy")


def number(value: float | None, reach: float = 0.02) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - reach, "high": value + reach}


def quality_document(names: Sequence[str] = NAMES) -> dict[str, Any]:
    samplers = [(s, [*MEASURES, *(["mutual_information"] if s != "none" else [])]) for s in SAMPLERS]
    parts = ["all", "boundary", "interior", *(f"class:{name}" for name in names)]
    metrics = {
        "auroc": 0.9,
        "aupr": 0.4,
        "fpr95": 0.3,
        "aurc": 0.02,
        "e_aurc": 0.01,
        "augrc": 0.01,
        "pavpu": 0.8,
    }
    return {
        "split": "test",
        "images": 60,
        "blocks": 12,
        "confidence": 0.95,
        "boundary_pixels": 3,
        "detection": [
            {"sampler": s, "measure": m, "part": part, "metric": metric}
            | number(value - 0.005 * p - 0.01 * i)
            for s, measures in samplers
            for i, m in enumerate(measures)
            for p, part in enumerate(parts)
            for metric, value in metrics.items()
        ],
        "regions": [
            {"sampler": s, "measure": m, "kind": kind, "metric": "spearman", "n": 900}
            | number(0.7 - 0.05 * i, 0.04)
            for s, measures in samplers
            for m in measures
            for i, kind in enumerate(("grid", "superpixel", "segment"))
        ],
        "reliability": [
            {
                "sampler": s,
                "calibrated": calibrated,
                "part": part,
                "bins": [
                    {
                        "confidence": c,
                        "accuracy": c - (0.02 if calibrated else 0.08),
                        "low": c - 0.14,
                        "high": c,
                        "share": 0.2,
                    }
                    for c in (0.3, 0.5, 0.7, 0.9, 0.99)
                ],
                "ece": number(0.02 if calibrated else 0.08, 0.01),
                "ece_noise": 0.004,
            }
            for s in SAMPLERS
            for part in parts
            for calibrated in (False, True)
        ],
        "frequency": [
            {
                "sampler": s,
                "groups": [
                    {
                        "share": 0.5,
                        "predicted": [0.7, 0.2, 0.1, 0.0][: len(names)],
                        "empirical": [0.68, 0.27, 0.05, 0.0][: len(names)],
                        "low": [0.6, 0.22, 0.01, None][: len(names)],
                        "high": [0.8, 0.3, 0.12, None][: len(names)],
                        "inside": False,
                    }
                ],
                "covered": number(0.75),
            }
            for s in SAMPLERS
        ],
        "novelty": [
            {"sampler": s, "measure": m, "source": source} | number(0.75)
            for s, measures in samplers
            for m in measures
            for source in ("noise", "shuffled_patches")
        ],
        "gate": {
            "measure": "mutual_information",
            "sampler": "mc_dropout",
            "source": "shuffled_patches",
            "value": 0.62,
            "low": 0.55,
            "high": 0.7,
            "threshold": 0.6,
            "passed": False,
        },
    }


def stress_document() -> dict[str, Any]:
    kinds = {
        "magnify": [(1.0, "×1"), (4.0, "×4"), (16.0, "×16")],
        "fgsm": [(0.0, "none"), (4.0, "4/255")],
        "noise": [(1.0, "uniform"), (2.0, "gaussian")],
    }
    metrics = {
        "balanced_accuracy": 0.9,
        "confidence": 0.93,
        "entropy": 0.1,
        "mutual_information": 0.01,
        "energy": -7.0,
    }
    return {
        "images": 20,
        "blocks": 5,
        "split": "test",
        "confidence": 0.95,
        "rows": [
            {"kind": kind, "strength": strength, "label": label, "metric": metric}
            | number(
                None if kind == "noise" and metric == "balanced_accuracy" else value * (1 - 0.1 * index),
                abs(value) / 20,
            )
            | ({"change": number(-0.1 * value * index)} if metric in JUDGED else {})
            for kind, steps in kinds.items()
            for index, (strength, label) in enumerate(steps)
            for metric, value in metrics.items()
        ],
        "verdicts": [
            {"kind": "magnify", "ok": True, "text": "Confidence falls with accuracy."},
            {"kind": "noise", "ok": False, "text": "Noise is taken for <b>sky</b>."},
            {"kind": "fgsm", "ok": None, "text": "Nothing moves with adversarial steps."},
        ],
    }


def novelty_document() -> dict[str, Any]:
    edges = np.linspace(0, 1, 11).tolist()
    return {
        "confidence": {
            "edges": edges,
            "held_out": [1, 1, 2, 3, 4, 6, 9, 14, 30, 60],
            "pool": [2, 2, 3, 4, 5, 7, 10, 15, 28, 54],
            "difference": number(-0.03, 0.01),
            "evidence": "held-out 40 images in 12 independent units, pool 60 images in 9 independent units",
        },
        "neighbours": {
            "edges": edges,
            "held_out": [9, 5, 3, 1, 0, 0, 0, 0, 0, 0],
            "pool": [4, 5, 4, 3, 2, 1, 0, 0, 0, 0],
            "difference": number(0.1, 0.03),
        },
        "farthest": [{"image_id": 7, "uri": f"{HOSTILE}.png", "distance": 0.9, "percentile": 98.0}],
        "held_out_classes": {
            "classes": ["car", HOSTILE],
            "model": "r01-without",
            "images": 60,
            "blocks": 12,
            "rows": [
                {"sampler": "mc_dropout", "measure": m, "metric": metric} | number(0.8)
                for m in ("entropy", "mutual_information")
                for metric in ("auroc", "aupr", "fpr95")
            ],
        },
    }


def scoring_document() -> dict[str, Any]:
    return {
        "reordering": {"spearman": 0.998, "top_overlap": 0.97, "regions": 9000, "images": 200},
        "input_range": {
            "outside": 1,
            "images": [
                {
                    "image_id": 9,
                    "uri": f"{HOSTILE}.png",
                    "statistic": "mean",
                    "channel": 0,
                    "value": -3.0,
                    "low": -1.0,
                    "high": 1.0,
                    "times": 3.2,
                }
            ],
        },
        "drift": {
            "warning": f"The new images differ most of all in {HOSTILE}.",
            "references": [
                {
                    "against": "last_run",
                    "run_id": 1,
                    "images": 100,
                    "measures": [{"measure": "entropy", "distance": 0.3, "p": 0.0004, "drifted": True}],
                },
                {"against": "calibration", "run_id": None, "images": 40, "measures": []},
            ],
            "images": [
                {
                    "image_id": 3,
                    "uri": f"night/{HOSTILE}.png",
                    "measure": "entropy",
                    "value": 0.7,
                    "percentile": 99.5,
                }
            ],
        },
    }


def calibration_document() -> dict[str, Any]:
    def row(name: str, nll: float) -> dict[str, Any]:
        return {
            "name": name,
            "nll": number(nll),
            "ece": number(nll / 5),
            "brier": number(nll / 2),
            "labels_changed": 0.001,
            "parameters": {},
        }

    return {
        "source": "calibration",
        "images": 40,
        "blocks": 12,
        "pixels": 80_000,
        "calibrators": [row("identity", 0.5), row("temperature", 0.4), row("vector", 0.39)],
        "chosen": "temperature",
        "auto": "temperature",
    }
