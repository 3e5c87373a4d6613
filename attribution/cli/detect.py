"""`python -m attribution detect`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from attribution.cli.asked import check_file, opened
from attribution.diffusion.pictures import open_upload
from attribution.files import write_whole
from attribution.query.detect import find
from attribution.query.labels import check_labels, check_threshold, parse_labels


def detect(
    image: Path,
    labels: str,
    prompt: str | None = None,
    detector: str | None = None,
    threshold: float | None = None,
    index: Path | None = None,
    out: Path | None = None,
) -> None:
    """Find objects in a picture by their names.

    Args:
        image: a picture.
        labels: names, such as "apple . motorcycle".
        prompt: of the picture: where no detector can be had, its words are looked for by cross-attention.
        detector: a GroundingDINO's folder, `.pth` file or hub id; the embedded world's by default, else the published.
        threshold: 0 to 1, the least score; the detector's own by default.
        index: an index folder; the embedded one by default.
        out: a JSON file.
    """
    check_file("--out", out)
    wanted = check_labels(parse_labels(labels))
    picture = open_upload(image)
    if threshold is not None:
        check_threshold(threshold)
    found = find(*opened(index), picture, wanted, prompt or labels, threshold, detector)
    if out is not None:
        told = {"by": found.by, "detections": [asdict(each) for each in found.detections]}
        write_whole(out, (json.dumps(told, indent=1) + "\n").encode())
    print(found.by, file=sys.stderr)
    for each in found.detections:
        print(f"{each.score:.3f} {', '.join(f'{side:.1f}' for side in each.box)}  {each.label}")
