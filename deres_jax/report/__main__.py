# SPDX-License-Identifier: Apache-2.0
"""One finished run beside a baseline and the best possible: three lines and a page.

  python -m deres_jax.report --workdir=RUN --baseline=LR_RUN --out=report.html

The page is one file: inline SVG, no script, nothing fetched. All text that comes from files is
escaped.
"""

import dataclasses
import html
import pathlib

from absl import app, flags

from deres_jax.core import cli, files, run_files
from deres_jax.core.errors import UserError, printable
from deres_jax.report import svg


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
    """How the page calls the run."""
    if self.result.backbone == 'lr':
      return 'logistic regression'
    return f'{self.result.backbone} + {self.result.connector}, {self.result.depth} layers'

  @property
  def bayes_auc(self) -> float | None:
    """AUC on the test split of the teacher that drew its labels, if the data are planted."""
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
  """(AUC - AUC_baseline) / (AUC_Bayes - AUC_baseline) on the test split."""
  if run.bayes_auc is None:
    return None
  low = baseline.result.auc
  return (run.result.auc - low) / (run.bayes_auc - low)


def summary(run: Finished, baseline: Finished) -> str:
  """The comparison in a few lines for a terminal."""
  rows = [(printable(x.name), x.result.auc, x.result.auc_se) for x in (baseline, run)]
  lines = [f'{name:<34} test auc {auc:.4f}  (se {se:.4f})' for name, auc, se in rows]
  closed = gap_closed(run, baseline)
  if closed is not None:
    lines.append(f'{"best possible (Bayes)":<34} test auc {run.bayes_auc:.4f}')
    lines.append(f'{closed:.0%} of the gap between the two ends closed')
  return '\n'.join(lines)


# The page.

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;
color:#1b1f24;background:#fff}
h1{font-size:1.4rem}svg{width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .6rem;border-bottom:1px solid #d8dee4;text-align:right}
td:first-child,th:first-child{text-align:left}
pre{background:#f6f8fa;padding:.8rem;overflow-x:auto;font-size:.85rem}
svg text{font-size:12px;fill:#57606a}
.grid{stroke:#eaeef2}.level{stroke:currentColor;stroke-dasharray:6 4}
.orange{color:#bc4c00}.green{color:#1a7f37}svg .orange,svg .green{fill:currentColor}
.train,.validation{fill:none;stroke:#8c959f;stroke-width:1.5}
.validation{stroke:#0969da;stroke-width:2.5}.dot{fill:#0969da}
"""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 700, 320, 52, 16, 12, 40


def _chart(run: Finished, baseline: Finished) -> str:
  """AUC by step: training (progressive), validation, and the two ends as level lines."""
  series = {
    split: [(x.step, x.auc) for x in run.lines if x.split == split and x.auc]
    for split in ('train', 'validation')
  }
  levels = [(baseline.name, baseline.result.auc, 'orange')]
  if run.bayes_auc is not None:
    levels.append(('best possible', run.bayes_auc, 'green'))
  values = [auc for points in series.values() for _, auc in points] + [v for _, v, _ in levels]
  low, high = min(values), max(values)
  pad = 0.08 * (high - low) or 0.01
  last, right, floor = run.result.steps, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
  x = svg.Scale(0, last, _LEFT, right)
  y = svg.Scale(low - pad, high + pad, floor, _TOP)
  parts = []
  ticks, decimals = svg.round_ticks(y.low, y.high)
  for auc in ticks:
    parts.append(svg.line(_LEFT, y(auc), right, y(auc), 'grid'))
    parts.append(svg.text(_LEFT - 6, y(auc) + 4, f'{auc:.{decimals}f}', 'end'))
  for i in range(5):
    step = last * i // 4
    parts.append(svg.text(x(step), floor + 18, f'{step}'))
  parts.append(svg.text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, 'step'))
  for name, value, kind in levels:
    parts.append(svg.line(_LEFT, y(value), right, y(value), f'level {kind}'))
    parts.append(svg.text(right, y(value) - 5, f'{name} {value:.4f}', 'end', kind))
  for split, points in series.items():
    parts.append(svg.polyline([(x(s), y(a)) for s, a in points], split))
  parts += [svg.marker('circle', x(s), y(a), 4, 'dot') for s, a in series['validation']]
  return svg.picture(parts, 'AUC by step', _WIDTH, _HEIGHT)


def _calibration(result: run_files.Result) -> str:
  return '' if result.calibration is None else f'{result.calibration:.3f}'


def page(run: Finished, baseline: Finished) -> str:
  """The whole page."""
  rows = [(x.name, x.result) for x in (baseline, run)]
  cells = ''.join(
    f'<tr><td>{html.escape(name)}</td><td>{r.auc:.4f} ± {r.auc_se:.4f}</td>'
    f'<td>{r.logloss:.4f}</td><td>{_calibration(r)}</td>'
    f'<td>{r.params_dense:,}</td><td>{r.flops_forward_per_row:,.0f}</td></tr>'
    for name, r in rows
  )
  closed = gap_closed(run, baseline)
  said = ''
  if closed is not None:
    best = run.result.bayes
    cells += (
      f'<tr><td>best possible (Bayes)</td><td>{best.bayes_auc:.4f}</td>'
      f'<td>{best.bayes_logloss:.4f}</td><td></td><td></td><td></td></tr>'
    )
    said = (
      f'<p>The labels were drawn by a known teacher, so the best possible AUC is known. The model '
      f'closed <b>{closed:.0%}</b> of the gap between {html.escape(baseline.name)} and it.</p>'
    )
  result = html.escape(run.text)
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>{html.escape(run.name)}</title><style>{_STYLE}</style>'
    f'<h1>{html.escape(run.name)} on {html.escape(run.result.dataset)}</h1>{said}'
    '<p>AUC by step: <span style="color:#0969da">validation</span> and '
    '<span style="color:#57606a">training rows before they are learnt from</span>.</p>'
    f'{_chart(run, baseline)}'
    '<h2>On the test split</h2><table><tr><th></th><th>AUC ± se</th><th>LogLoss</th>'
    '<th>predicted / observed</th><th>dense parameters</th><th>FLOPs a row</th></tr>'
    f'{cells}</table><h2>result.json</h2><pre>{result}</pre></html>\n'
  )


def _define_flags():
  flags.DEFINE_string('workdir', None, 'Folder of the finished run.')
  flags.DEFINE_string('baseline', None, 'Folder of the finished run to compare with.')
  flags.DEFINE_string('out', None, 'Page to write; default: report.html in the workdir.')


def main(argv: list[str]):
  """The command: writes the page."""
  cli.no_arguments(argv)
  f = flags.FLAGS
  if not f.workdir or not f.baseline:
    raise UserError('give both --workdir=RUN and --baseline=RUN')
  out = files.output_file(f.out or str(pathlib.Path(f.workdir) / 'report.html'))
  run, baseline = load(f.workdir), load(f.baseline)
  files.write(out, page(run, baseline))
  print(f'{summary(run, baseline)}\n{out}')


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
