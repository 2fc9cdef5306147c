# SPDX-License-Identifier: Apache-2.0
"""Real rows from raw file to result. Skipped where there is no sample."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from data_pipelines import build
from data_pipelines.doctor import __main__ as doctor

REPO = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def criteo(samples, tmp_path_factory):
  out = tmp_path_factory.mktemp('criteo') / 'data'
  raw = samples / 'criteo_sample.tsv.gz'
  assert not build.main(['--dataset=criteo', f'--raw={raw}', f'--out={out}', '--seed=1'])
  assert not doctor.main([str(out)])
  return out


def run(experiment, workdir, data, *more):
  args = [sys.executable, '-m', 'deres_jax.main', f'--config=experiments/{experiment}.py']
  args += [f'--workdir={workdir}', f'--config.data.path={data}', '--config.mesh.devices=1', *more]
  environ = {**os.environ, 'XLA_FLAGS': ''}  # long enough to need the usual optimizations
  done = subprocess.run(args, capture_output=True, text=True, cwd=REPO, env=environ, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads((workdir / 'result.json').read_text())


def test_logistic_regression_reaches_the_auc_of_scikit_learn(criteo, tmp_path):
  """scikit-learn's LogisticRegression(C=0.03) has 0.7595 on these rows."""
  result = run('criteo_lr', tmp_path / 'w', criteo)
  assert result['auc'] == pytest.approx(0.7600, abs=0.003)
  assert result['logloss'] == pytest.approx(0.487, abs=0.003)
  assert result['rows'] == 13_713


def test_deres_trains_on_real_rows(criteo, tmp_path):
  """A few steps of the real config: finite, better than chance, complete."""
  short = ['--config.train.steps=6', '--config.train.epochs=0.0', '--config.train.eval_steps=6']
  short += ['--config.train.eval_epochs=0.0', '--config.data.batch_size=512']
  result = run('criteo_8l', tmp_path / 'w', criteo, *short)
  assert 0.55 < result['auc'] < 0.76 and result['auc_se'] < 0.006
  assert result['depth'] == 8 and result['connector'] == 'deres'
  assert 0 < result['flops_connector_extra'] < 0.02


# Of 2,000 test rows: two standard errors are 0.03. Of 1,000 rows with 27 clicks, 0.11.
@pytest.mark.parametrize(
  ('file', 'flags', 'rows', 'low', 'high'),
  [
    ('avazu_sample.csv.gz', ['--dataset=avazu'], 2000, 0.67, 0.74),
    ('criteo_1tb_sample.tsv.gz', ['--dataset=criteo_1tb', '--max_ids=10000'], 1000, 0.5, 0.8),
  ],
)
def test_the_other_samples_train(samples, tmp_path, file, flags, rows, low, high):
  if not (samples / file).is_file():
    pytest.skip(f'no {file} in {samples}')
  out = tmp_path / 'data'
  assert not build.main([*flags, f'--raw={samples / file}', f'--out={out}'])
  assert not doctor.main([str(out)])
  result = run('criteo_lr', tmp_path / 'w', out, '--config.data.batch_size=256')
  assert result['rows'] == rows and low < result['auc'] < high
