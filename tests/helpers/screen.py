# SPDX-License-Identifier: Apache-2.0
"""Draws the progress of a run and of a build, for a terminal that a test holds.

python tests/helpers/screen.py run|build
"""

import sys

from data_pipelines.core import progress as progress_lib
from deres_jax.training.logs import progress


def run():
  bar = progress.Progress(40, 10, 20)
  for step in range(11, 41):
    bar.step(step, 'loss 0.5000  auc 0.7000  1,000 rows/s' if step % 5 == 0 else '')
  bar.line('[red]step 40/40[/red]  validation auc 0.70000')
  bar.close()


def build():
  progress_lib.LINE_SECONDS = progress_lib.DRAW_SECONDS = -1.0
  with progress_lib.Progress(lambda line: print(line, flush=True), 'reading', 100) as bar:
    bar.add(50)


if __name__ == '__main__':
  {'run': run, 'build': build}[sys.argv[1]]()
