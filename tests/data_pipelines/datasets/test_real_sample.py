# SPDX-License-Identifier: Apache-2.0
"""The parser's statistics on a real Criteo sample, if there is one (none of its rows is here)."""

import os
from pathlib import Path

import numpy as np
import pytest
from invented_rows import REPOSITORY, concatenate

from data_pipelines import build
from data_pipelines.datasets.criteo import CRITEO_TEXT, FIELD_NAMES
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.text.chunks import TextFile
from data_pipelines.text.parser import parse

SAMPLES = Path(os.environ.get('DERES_DATA_SAMPLES', REPOSITORY.parent / 'shared' / 'data'))
SAMPLE = SAMPLES / 'criteo_sample.tsv.gz'
pytestmark = pytest.mark.skipif(
  not SAMPLE.is_file(),
  reason=f'no {SAMPLE.name}; point DERES_DATA_SAMPLES at a folder that holds it',
)

# By field, I1..I13 then C1..C26. Distinct values (missing ones not counted) of a uniform 0.3 %
# sample of the training data; missing rates of a larger sample of it, hence the tolerance.
DISTINCT = (
  156, 2991, 739, 105, 28379, 2098, 732, 124, 1822, 8, 100, 88, 191,
  616, 528, 61763, 32222, 154, 11, 8634, 292, 3, 13982, 4087, 56396, 2944,
  26, 5897, 46381, 10, 2827, 1341, 3, 52249, 12, 14, 14595, 54, 11138,
)  # fmt: skip
MISSING = (
  0.4521, 0, 0.2132, 0.2146, 0.0261, 0.2234, 0.0431, 0.0006, 0.0431, 0.4521, 0.0431, 0.7654,
  0.2146, 0, 0, 0.0345, 0.0345, 0, 0.1221, 0, 0, 0, 0, 0, 0.0345, 0, 0, 0, 0.0345, 0, 0, 0.4411,
  0.4411, 0.0345, 0.7615, 0, 0.0345, 0.4411, 0.4411,
)  # fmt: skip
MISSING_TOLERANCE = 0.0015


def test_statistics_of_the_sample():
  rows = concatenate([
    parse(CRITEO_TEXT, chunk.read(), 1)[0] for chunk in TextFile(SAMPLE).chunks(1 << 20, None)
  ])  # fmt: skip
  assert len(rows.label_N) == 137_139
  assert abs(rows.label_N.mean() - 0.25677) < 5e-6
  columns = [*zip(rows.ints_NI.T, rows.ints_missing_NI.T, strict=True)]
  columns += zip(rows.hexes_NC.T, rows.hexes_missing_NC.T, strict=True)
  for f, (name, (column_N, missing_N)) in enumerate(zip(FIELD_NAMES, columns, strict=True)):
    assert len(np.unique(column_N[~missing_N])) == DISTINCT[f], name
    assert abs(missing_N.mean() - MISSING[f]) < MISSING_TOLERANCE, name


def test_sample_builds_and_is_whole(tmp_path):
  flags = ['--dataset=criteo', f'--raw={SAMPLE}', f'--out={tmp_path / "out"}']
  assert build.main(flags) == 0
  assert doctor.main([str(tmp_path / 'out')]) == 0
