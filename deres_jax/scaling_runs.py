# SPDX-License-Identifier: Apache-2.0
"""The runs on a page of scaling laws, each with its config and the command that repeats it."""

import html
import os
import pathlib
import urllib.parse
from typing import Any

from deres_jax import compare, rerun, svg
from deres_jax import scaling_tables as tables
from deres_jax.runs import COMPUTE
from deres_jax.scaling_svg import Look
from deres_jax.scaling_tables import Html


def link(run: compare.Run, out: pathlib.Path) -> Html:
  """The run's id; linked, relative to the folder of the page, to its config.json if it is there."""
  file = rerun.config_file(run)
  id = html.escape(run.id)
  if not file.is_file():
    return Html(f'<code>{id}</code>')
  path = pathlib.Path(os.path.relpath(file.resolve(), out.resolve())).as_posix()
  return Html(f'<a href="{urllib.parse.quote(path)}"><code>{id}</code></a>')


def table(
  c: dict[str, Any], looks: dict[str, Look], finished: list[compare.Run], out: pathlib.Path
) -> str:
  """All finished runs, those on no curve last: figures, config and command."""
  figure = COMPUTE[c['compute']]
  place = {
    (run['sweep'], run['id']): (i, point)
    for i, point in enumerate(c['points'])
    for run in point['runs']
  }
  last = (len(c['points']), None)
  ordered = sorted(finished, key=lambda r: (place.get((r.folder, r.id), last)[0], r.seed))
  rows, known = [], set()
  for run in ordered:
    r, (_, point) = run.result, place.get((run.folder, run.id), last)
    known.add(rerun.config_file(run).is_file())
    command = f'<details><summary>command</summary><pre>{html.escape(rerun.command(run))}</pre>'
    rows.append([
      tables.named(point['curve'], looks) if point else f'{run.name} (on no curve)',
      point['size'] if point else f'depth {r["depth"]}, dim {r["dim"]}',
      f'{run.seed}',
      svg.compact(r[figure]),
      f'{r["params_dense"]:,}',
      f'{r["auc"]:.5f}',
      link(run, out),
      Html(f'{command}</details>'),
    ])  # fmt: skip
  head = ['', 'size', 'seed', 'FLOPs', 'dense parameters', 'AUC', 'config', '']
  notes = []
  if True in known:
    notes.append(
      '<p>A command sets every field that is not at its default, on top of a file of one line:</p>'
      f'<pre>{html.escape(rerun.MAKE_FILE)}</pre>'
    )
  if False in known:
    notes.append(
      '<p>Where no config.json is beside a result, put the experiment file of the sweep in the '
      f'place of <code>{rerun.UNKNOWN}</code>: the command sets what the sweep varied.</p>'
    )
  return f'<h2>Runs</h2>{"".join(notes)}' + tables.table(head, rows, 'Runs', kind='tall text')
