"""An attribution as JSON."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attribution.attribute import Attribution, image_sha256


def to_json(attribution: Attribution) -> dict[str, Any]:
    """The contract of `attribute --out`: query, method, results, evaluations, seconds, settings, index.

    Boxes are `x0, y0, x1, y1` in pixels of the query's picture; scores are `score`, `score_low`, `score_high`,
    the bounds null where there is one noise alone.
    """
    query = attribution.query
    return {
        "query": {
            "prompt": query.prompt,
            "seed": query.seed,
            "image_sha256": image_sha256(query.image),
            "boxes": [list(box) for box in query.boxes],
            "word": query.word,
        },
        "method": attribution.settings.method,
        "results": [
            {
                "rank": result.rank,
                "id": result.id,
                "score": result.score,
                "score_low": _finite(result.low),
                "score_high": _finite(result.high),
                "caption": result.caption,
                "flip": result.flip,
            }
            for result in attribution.results
        ],
        "evaluations": attribution.evaluations,
        "seconds": {stage: round(seconds, 3) for stage, seconds in attribution.seconds.items()},
        "settings": asdict(attribution.settings),
        "index": {"id": attribution.index_id, "model_sha256": attribution.model_sha256},
    }


def _finite(bound: float) -> float | None:
    """JSON knows no infinity."""
    return bound if math.isfinite(bound) else None


def write_json(attribution: Attribution, path: Path) -> None:
    """Write the JSON, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(to_json(attribution), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
