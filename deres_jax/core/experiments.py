# SPDX-License-Identifier: Apache-2.0
"""Experiments by name: --config=criteo_8l is --config=experiments/criteo_8l.py."""

import difflib
import pathlib

from deres_jax.core.errors import UserError

# In the current folder, or beside the package in a source checkout.
_FOLDERS = pathlib.Path('experiments'), pathlib.Path(__file__).parents[2] / 'experiments'
_FLAG = '--config', '-config'


def find(text: str) -> str:
  """Returns the file that --config names, with its config string.

  Args:
    text: a path or a name, and after a colon the config string, if any: 'criteo_8l',
      'criteo_8l.py:depth=16', 'my/experiment.py'.

  Raises:
    UserError: no such experiment; lists those with similar names, and all.
  """
  name, colon, overrides = text.partition(':')
  path = pathlib.Path(name)
  if path.is_file():
    return text
  if name == path.name and path.suffix in ('', '.py'):
    for folder in _FOLDERS:
      file = folder / f'{path.stem}.py'
      if file.is_file():
        return f'{file}{colon}{overrides}'
  names = sorted({file.stem for folder in _FOLDERS for file in folder.glob('*.py')})
  close = difflib.get_close_matches(path.stem, names)
  meant = f'did you mean {" or ".join(close)}? ' if close else ''
  known = f'experiments here: {", ".join(names)}' if names else 'there is no folder experiments'
  raise UserError(f'--config={name}: no such file or experiment: {meant}{known}')


def in_arguments(argv: list[str]) -> list[str]:
  """Returns a command line with the value of --config replaced by the file that it names."""
  out = list(argv)
  for i, argument in enumerate(argv[1:], 1):
    if argument == '--':
      break
    name, equals, text = argument.partition('=')
    if name in _FLAG and equals:
      out[i] = f'{name}={find(text)}'
    elif name in _FLAG and i + 1 < len(argv):
      out[i + 1] = find(argv[i + 1])
  return out
