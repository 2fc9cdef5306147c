# SPDX-License-Identifier: Apache-2.0
"""A table of models from finished sweeps, usually one sweep folder for each split of the data.

  python -m deres_jax.compare --sweeps=DIR1,DIR2 --out=FILE.md

Points of one name are settings of one model. Of these the one with the best mean validation AUC is
chosen; the test split takes no part in it. FILE.json holds the same figures, and every run's.
"""

from typing import Any

from absl import app, flags

from deres_jax.compare import runs
from deres_jax.core import cli, files
from deres_jax.core.errors import UserError
from deres_jax.report import markdown


def page(c: dict[str, Any]) -> str:
  """Returns the comparison as Markdown."""
  head = ['name', 'setting', 'runs', 'test AUC', 'sd', f'- {c["reference"]}', 'LogLoss']
  head += ['dense parameters', 'MFLOP a row', 'rows/s']
  tried = [
    [x['name'], x['setting'], x['runs'], _optional(x['auc_validation']), 'yes' * x['chosen']]
    for x in c['settings']
  ]
  tables = {
    'models': markdown.table(head, [_cells(x) for x in c['table']], left=2),
    'tried': markdown.table(['name', 'setting', 'runs', 'validation AUC', 'chosen'], tried, left=2),
  }
  return markdown.render('deres_jax.compare', 'comparison.md', {**c, **tables})


def _cells(x: dict[str, Any]) -> list[str]:
  return [
    x['name'],
    x['setting'],
    x['runs'],
    f'{x["auc"]:.5f}',
    _optional(x['auc_sd']),
    _gap(x),
    f'{x["logloss"]:.5f}',
    f'{x["params_dense"]:,.0f}',
    f'{x["flops_forward_per_row"] / 1e6:.4g}',
    f'{x["rows_per_second"]:,.0f}',
  ]


def _optional(value: float | None) -> str:
  return '' if value is None else f'{value:.5f}'


def _gap(x: dict[str, Any]) -> str:
  if x['reference']:
    return 'reference'
  if not x['pairs']:
    return 'no pairs'
  interval = '' if x['interval'] is None else f' ± {x["interval"]:.5f}'
  pairs = '' if x['pairs'] == x['runs'] else f' ({x["pairs"]} pairs)'
  return f'{x["difference"]:+.5f}{interval}{pairs}'


def _define_flags():
  flags.DEFINE_list('sweeps', None, 'Folders that deres_jax.sweep wrote, separated by commas.')
  flags.DEFINE_string('out', None, 'Markdown file to write; a .json of the same name beside it.')
  flags.DEFINE_string('title', 'Comparison', 'First line of the page.')
  flags.DEFINE_string('command', '', 'What made the runs, to be shown on the page.')
  flags.DEFINE_string('reference', None, 'Name that all are compared with; default: the first.')
  flags.DEFINE_bool('partial', False, 'Allow missing runs; the page says which.')


def main(argv: list[str]):
  """Writes the table and the JSON beside it."""
  cli.no_arguments(argv)
  f = flags.FLAGS
  if not f.sweeps or not f.out:
    raise UserError('give both --sweeps=DIR1,DIR2 and --out=FILE.md')
  out = files.output_file(f.out, '.md')
  content = runs.compare(runs.load(f.sweeps), f.title, f.command, f.reference, f.partial)
  files.write_json(out.with_suffix('.json'), content)
  text = page(content)
  files.write(out, text)
  print(f'{text}\n{out}')


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
