# SPDX-License-Identifier: Apache-2.0
"""Prints, as JSON, what every command does with --help: {module: [exit code, stdout, stderr]}.

python tests/helpers/help_screens.py MODULE ...

One process that forks, because importing JAX and Beam for each command takes most of a minute.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
import traceback

# What most of them import, which defines no flags: shared by all forks.
import deres_jax.training.loop  # noqa: F401


def screen(module: str, file) -> None:
  out, err = io.StringIO(), io.StringIO()
  sys.argv = [module, '--help']
  code = 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      runpy.run_module(module, run_name='__main__', alter_sys=True)
    except SystemExit as e:
      code = e.code or 0
    except BaseException:
      traceback.print_exc()
      code = 1
  json.dump([code, out.getvalue(), err.getvalue()], file)
  file.flush()


def main():
  found = {}
  for module in sys.argv[1:]:
    with tempfile.TemporaryFile('w+') as file:
      child = os.fork()
      if not child:
        screen(module, file)
        os._exit(0)
      os.waitpid(child, 0)
      file.seek(0)
      found[module] = json.load(file)
  print(json.dumps(found))


if __name__ == '__main__':
  main()
