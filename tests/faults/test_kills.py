# SPDX-License-Identifier: Apache-2.0
"""A run killed ten times, at random and in saves, ends as one that nobody disturbed."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def test_a_run_survives_ten_kills(planted, tmp_path):
  """`make faults` does a hundred, with a larger model."""
  command = [sys.executable, str(HERE / 'kills.py'), f'--data={planted}', '--kills=10', '--seed=3']
  command += [f'--out={tmp_path / "out"}', '--more=model.backbone=lr,model.embed_dim=1']
  environ = {**os.environ, 'PYTHONPATH': str(HERE.parents[1])}
  done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  said = json.loads(done.stdout.splitlines()[-1])
  assert said['kills'] >= 10 and said['starts'] > said['runs']
