# SPDX-License-Identifier: Apache-2.0
"""Compares a finished run with a baseline and the best possible: three lines and a page.

  python -m deres_jax.report --workdir=RUN --baseline=LR_RUN --out=report.html

The page is one file without script that fetches nothing; its chart is also written as PDF and
PNG.
"""

import dataclasses
import pathlib

from absl import app, flags
from markupsafe import Markup
from matplotlib.figure import Figure

from deres_jax.core import cli, files, run_files
from deres_jax.core.errors import UserError, printable
from deres_jax.report import charts, html
from deres_jax.report.charts import Look


@dataclasses.dataclass(frozen=True)
class Finished:
  """A finished run: result.json and metrics.jsonl.

  Attributes:
    text: result.json as it is written.
  """

  workdir: pathlib.Path
  result: run_files.Result
  lines: list[run_files.MetricsLine]
  text: str

  @property
  def name(self) -> str:
    """Name of the run on the page."""
    if self.result.backbone == 'lr':
      return 'logistic regression'
    return f'{self.result.backbone} + {self.result.connector}, {self.result.depth} layers'

  @property
  def bayes_auc(self) -> float | None:
    """Test AUC of the teacher that drew the labels, if the data are planted."""
    return self.result.bayes.bayes_auc if self.result.bayes else None


_ADVICE = 'put the file back, or delete result.json and train the run to its end again'


def load(workdir: str) -> Finished:
  """Reads a finished run.

  Raises:
    UserError: it is not finished, or a file is damaged.
  """
  folder = pathlib.Path(workdir)
  result = run_files.read_result(folder, _ADVICE)
  if result is None:
    raise UserError(f'{workdir} holds no result.json: train it to its end first')
  if result.auc is None or result.auc_se is None:
    raise UserError(f'{workdir}: the run has no test AUC, so there is nothing to compare')
  lines = run_files.read_metrics(folder, _ADVICE)
  return Finished(folder, result, lines, (folder / 'result.json').read_text())


def gap_closed(run: Finished, baseline: Finished) -> float | None:
  """Returns (AUC - AUC_baseline) / (AUC_Bayes - AUC_baseline) on the test split."""
  if run.bayes_auc is None:
    return None
  low = baseline.result.auc
  return (run.result.auc - low) / (run.bayes_auc - low)


def summary(run: Finished, baseline: Finished) -> str:
  """Returns the comparison in a few lines for a terminal."""
  rows = [(printable(x.name), x.result.auc, x.result.auc_se) for x in (baseline, run)]
  lines = [f'{name:<34} test auc {auc:.4f}  (se {se:.4f})' for name, auc, se in rows]
  closed = gap_closed(run, baseline)
  if closed is not None:
    lines.append(f'{"best possible (Bayes)":<34} test auc {run.bayes_auc:.4f}')
    lines.append(f'{closed:.0%} of the gap between the two ends closed')
  return '\n'.join(lines)


# The page.

_LOOKS = {'validation': Look('c1', 'o'), 'train': Look('c0', 's')}


def chart(run: Finished, baseline: Finished, wide: bool) -> Figure:
  """Draws AUC by step: training (progressive), validation, and the two ends as level lines."""
  width, height = (900, 400) if wide else (370, 300)
  ax = charts.axes(width, height, left=56, top=28, right=14, bottom=46)
  aucs = []
  for split, look in _LOOKS.items():
    points = [(x.step, x.auc) for x in run.lines if x.split == split and x.auc]
    main = split == 'validation'
    colour = charts.paint(look.colour)
    aucs += [auc for _, auc in points]
    if points:
      ax.plot(*zip(*points, strict=True), color=colour, linewidth=2.5 if main else 1.5)
    for step, auc in points if main else []:
      charts.mark(ax, step, auc, look, 4, 'dot', f'step {step}: AUC {auc:.5f}')
  levels = [(baseline.name, baseline.result.auc, 'c2')]
  if run.bayes_auc is not None:
    levels.append(('best possible', run.bayes_auc, 'c3'))
  for name, auc, colour in levels:
    ax.axhline(auc, color=charts.paint(colour), linewidth=1, linestyle=(0, (6, 4)))
    ends = {'ha': 'right', 'coords': ax.get_yaxis_transform(), 'colour': colour}
    charts.label(ax, f'{name} {auc:.4f}', (1, auc), (0, 5), **ends, kind='level')
  aucs += [auc for _, auc, _ in levels]
  room = 0.08 * (max(aucs) - min(aucs)) or 0.01
  ax.set(xlim=(0, run.result.steps), ylim=(min(aucs) - room, max(aucs) + room))
  charts.x_ticks(ax, *charts.round_ticks(*ax.get_xlim(), 6 if wide else 4))
  charts.y_ticks(ax, *charts.round_ticks(*ax.get_ylim()))
  charts.axis_names(ax, 'step', 'AUC')
  return ax.figure


def page(run: Finished, baseline: Finished) -> str:
  """Returns the page as HTML."""
  drawn = [
    charts.svg(chart(run, baseline, wide), kind, 'AUC by step', kind)
    for wide, kind in ((True, 'wide'), (False, 'narrow'))
  ]
  return html.render(
    'report.html',
    {
      'run': run,
      'baseline': baseline,
      'gap_closed': gap_closed(run, baseline),
      'looks': _LOOKS,
      'chart': Markup('').join(drawn),
      'result': run.text,
    },
  )


def _define_flags():
  flags.DEFINE_string('workdir', None, 'Folder of the finished run.')
  flags.DEFINE_string('baseline', None, 'Folder of the finished run to compare with.')
  flags.DEFINE_string('out', None, 'Page to write; default: report.html in the workdir.')


def main(argv: list[str]):
  """Writes the page and its chart."""
  cli.no_arguments(argv)
  f = flags.FLAGS
  if not f.workdir or not f.baseline:
    raise UserError('give both --workdir=RUN and --baseline=RUN')
  out = files.output_file(f.out or str(pathlib.Path(f.workdir) / 'report.html'))
  run, baseline = load(f.workdir), load(f.baseline)
  drawn = charts.legend(chart(run, baseline, wide=True), _LOOKS)
  charts.save(out, {f'{run.name} on {run.result.dataset}': drawn})
  files.write(out, page(run, baseline))
  print(f'{summary(run, baseline)}\n{out}')


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
