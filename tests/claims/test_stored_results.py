# SPDX-License-Identifier: Apache-2.0
"""The committed results are what the commands make of the committed runs."""

import json
import pathlib

import pytest

from deres_jax.claims import __main__ as claims
from deres_jax.claims import exponents, study
from deres_jax.scaling import __main__ as scaling
from deres_jax.scaling import analysis

REPO = pathlib.Path(__file__).resolve().parents[2]
RESULTS = REPO / 'docs' / 'results'


def test_the_committed_laws_are_those_of_the_committed_runs(monkeypatch):
  monkeypatch.chdir(REPO)
  wanted = json.loads((RESULTS / 'claims' / 'scaling' / 'fit.json').read_text())
  names = [curve['curve'] for curve in wanted['laws']['saturating']['curves']]
  options = analysis.Options(match='depth=16', bootstraps=0)
  found, _, finished = scaling.fit(wanted['sweeps'], 'forward', names, None, False, None, options)
  assert found['points'] == wanted['points'] and found['inputs'] == wanted['inputs']
  assert len(finished) == len(list((RESULTS / 'claims' / 'planted' / 'runs').iterdir()))
  for law, x in found['laws'].items():
    for got, old in zip(x['curves'], wanted['laws'][law]['curves'], strict=True):
      assert got['auc_at_reference'] == pytest.approx(old['auc_at_reference'], abs=1e-7)
      slopes = (y['slope_per_doubling']['estimate'] for y in (got, old))
      assert next(slopes) == pytest.approx(next(slopes), rel=1e-3, abs=1e-8)


def test_the_committed_claims_are_those_of_the_committed_runs(monkeypatch):
  """Paired differences, their intervals and verdicts; the laws are in the test above."""
  bare = {'verdict': 'not judged here', 'remark': '', 'fitted': False}
  monkeypatch.setattr(exponents, 'judge', lambda *_: bare)
  content = json.loads((RESULTS / 'claims.json').read_text())
  for part, folder in (('study', 'planted'), ('exploratory', 'sample')):
    found = claims.claims(study.load([str(RESULTS / 'claims' / folder)]))
    if part == 'exploratory':
      found = claims.unjudged(found)
    for got, old in zip(found, content[part]['claims'], strict=True):
      rows = [x.get('rows', []) for x in (got, old)]
      figures = ('mine', 'base', 'difference', 'low', 'high', 'p', 'verdict')
      assert len(rows[0]) == len(rows[1]) and got['key'] == old['key']
      for a, b in zip(*rows, strict=True):
        assert [a[k] for k in figures] == pytest.approx([b[k] for k in figures])
      assert got['key'] == 'gamma' or got['verdict'] == old['verdict']
