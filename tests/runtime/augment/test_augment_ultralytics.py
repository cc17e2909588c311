"""What is written is what Ultralytics' own loader takes.

It is skipped where that is not installed: it is no dependency, since it brings torchvision, OpenCV and matplotlib.
`pip install --no-deps ultralytics torchvision opencv-python-headless polars` and `pip install matplotlib` beside torch
are enough for this.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from test_augment_run import ALL, ROWS, augment, dataset, settings

from latentrt.augment.modes import MODES
from latentrt.testing import fake_pipeline

SPLITS = ("train", "val", "test")
LOAD = """
import json, sys
from pathlib import Path
import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
found = {}
for task in sys.argv[2:]:
    data = check_det_dataset(f"{sys.argv[1]}/{task}/data.yaml", autodownload=False)
    for split in ("train", "val", "test"):
        loaded = YOLODataset(img_path=data[split], data=data, task=task)
        cache = Path(loaded.label_files[0]).parent.with_suffix(".cache")
        counts = np.load(cache, allow_pickle=True).item()["results"]  # found, missing, empty, corrupt, of how many
        objects = sum(len(each["cls"]) for each in loaded.labels)
        found[f"{task}/{split}"] = [len(loaded.labels), objects, *map(int, counts)]
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("ultralytics") is None, reason="ultralytics is not installed")
def test_the_loader_finds_every_picture_and_none_corrupt(tmp_path):
    (tmp_path / "bundle").mkdir()
    expected = {}
    with fake_pipeline(tmp_path / "bundle") as pipe:
        for task in ROWS:
            modes = [name for name in ALL if task in MODES[name].tasks]
            out = tmp_path / task
            augment(pipe, dataset(tmp_path / "in" / task, task), out, settings(*modes, copies=len(modes)))
            for split in SPLITS:
                count = len(list((out / "images" / split).glob("*.png")))
                texts = [path.read_text() for path in (out / "labels" / split).glob("*.txt")]
                objects = sum(len(text.splitlines()) for text in texts)
                expected[f"{task}/{split}"] = [count, objects, count, 0, 0, 0, count]
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, str(tmp_path), *ROWS]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == expected
