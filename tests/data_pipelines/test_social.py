# SPDX-License-Identifier: Apache-2.0
"""KuaiRand folders to a prepared folder with behaviour sequences, on invented rows."""

import numpy as np
import pytest
from social_rows import (
  COLD_USER,
  EARLY,
  FIELDS,
  LATE,
  RANDOM,
  log_rows,
  read_social,
  reference,
  write_folder,
)

from data_pipelines import build, doctor


def prepare(raw, out, *flags) -> int:
  return build.main(['--dataset=social', f'--raw={raw}', f'--out={out}', *flags])


@pytest.fixture(scope='module')
def logs():
  return {EARLY: log_rows(260, 1), LATE: log_rows(240, 2), RANDOM: log_rows(60, 3)}


@pytest.fixture(scope='module')
def raw(logs, tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('social') / 'raw' / 'data', logs).parent


def assert_is(expected: dict, out) -> dict:
  """All of a prepared folder that a reference says; returns the schema."""
  schema, arrays = read_social(out)
  for split, wanted in expected['splits'].items():
    for name, values in wanted.items():
      np.testing.assert_array_equal(arrays[split][name], values, f'{split}, {name}')
      assert arrays[split][name].dtype == (np.uint8 if name == 'label' else np.int32)
  assert [field['name'] for field in schema['fields']] == FIELDS
  for field in schema['fields']:
    name = field['name']
    text = (out / 'vocabulary' / f'{name}.txt').read_text()
    assert text.splitlines() == expected['vocabularies'][name], name
    assert field['vocab_size'] == len(expected['vocabularies'][name]) + 2
    assert field['missing_rate_train'] == expected['missing'][name], name
  assert schema['group'] == {'name': 'user_id', 'groups': expected['groups']}
  head, torso = expected['borders']
  assert schema['items'] == {'field': 'video_id', 'head_below': head, 'torso_below': torso}
  return schema


@pytest.mark.parametrize(
  ('flags', 'label', 'length', 'min_count', 'seed'),
  [
    ((), 'is_click', 50, 2, 0),
    (('--label=long_view', '--events=3', '--min_count=9', '--seed=7'), 'long_view', 3, 9, 7),
    (('--label=is_like', '--events=1', '--random_log'), 'is_like', 1, 2, 0),
  ],
)
def test_all_is_as_in_the_plain_protocol(
  raw, logs, tmp_path, flags, label, length, min_count, seed
):
  out = tmp_path / 'out'
  assert prepare(raw, out, *flags) == 0
  rows = [*logs[EARLY], *logs[LATE], *(logs[RANDOM] if '--random_log' in flags else [])]
  expected = reference(rows, label, length, min_count, seed)
  schema = assert_is(expected, out)
  sizes = {field['name']: field['vocab_size'] for field in schema['fields']}
  shared = ('video_id', 'author_id', 'tag')
  assert schema['sequence'] == {
    'length': length,
    'attributes': [
      *({'name': name, 'vocab_size': sizes[name], 'field': name} for name in shared),
      {'name': 'feedback', 'vocab_size': 65, 'field': None},
      {'name': 'gap', 'vocab_size': 28, 'field': None},
    ],
  }
  feedback = (out / 'vocabulary' / 'feedback.txt').read_text().splitlines()
  assert feedback[:3] == ['click', 'like', 'click+like'] and feedback[-1] == (
    'click+like+follow+comment+forward+long_view'
  )
  gaps = (out / 'vocabulary' / 'gap.txt').read_text().splitlines()
  assert gaps == ['0', *(str(2**k) for k in range(25))]
  assert (schema['raw']['rows_read'], schema['raw']['rows_rejected']) == (len(rows), 0)
  assert doctor.main([str(out)]) == 0
  # Else the rows would not show what they are for.
  lengths = [(np.array(e)[:, 0] > 0).sum() for e in expected['splits']['train']['events']]
  assert min(lengths) == 0 and max(lengths) == min(length, max(lengths)) >= min(length, 20)
  if length == 50:
    assert COLD_USER in {row['user_id'] for row in rows}
