"""What Ultralytics' own loader says of a dataset, in a process of its own that opens no socket.

Their package lies in a folder of its own, which is no part of any environment here (`ultralytics.txt` has versions).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).with_name("ultralytics.txt")
PROGRAM = """
import json, sys
from importlib.metadata import version
from pathlib import Path
import numpy as np
from ultralytics import settings
settings.update({"sync": False})
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_cls_dataset, check_det_dataset, verify_image
_, detection, classification = sys.argv
found = {}
data = check_det_dataset(detection + "/data.yaml", autodownload=False)
for split in ("train", "val"):
    loaded = YOLODataset(img_path=data[split], data=data, task="detect")
    cache = Path(loaded.label_files[0]).parent.with_suffix(".cache")
    counts = np.load(cache, allow_pickle=True).item()["results"]
    found[split] = dict(zip(("found", "missing", "empty", "corrupt", "files"), map(int, counts)))
    found[split]["objects"] = sum(len(each["cls"]) for each in loaded.labels)
files = sorted((Path(classification) / "train").glob("*/*.png"))
found["classification"] = {
    "classes": check_cls_dataset(classification)["nc"],
    "files": len(files),
    "corrupt": sum(verify_image(((str(file), 0), ""))[2] for file in files),
}
print(json.dumps({"version": version("ultralytics"), **found}))
"""


def install(folder: Path) -> Path:
    """Their package with what it imports beside torch, put into a folder as far as it is not there."""
    if not (folder / "ultralytics").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, "--requirement", str(REQUIREMENTS)], check=True)
    return folder


def loaded(detection: Path, classification: Path, *, site: Path, scratch: Path) -> dict[str, Any]:
    """Counts of found, missing, empty and corrupt files of each split, and of a classification.

    Their classification dataset itself needs torchvision's kernels, which are those of another build of torch: its
    check of each picture is asked instead.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "YOLO_CONFIG_DIR": str(scratch),
        "YOLO_OFFLINE": "1",
        "MPLCONFIGDIR": str(scratch),
    }
    command = [sys.executable, "-c", PROGRAM, str(detection), str(classification)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"Ultralytics' loader failed: {run.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found
