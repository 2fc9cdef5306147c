# SPDX-License-Identifier: Apache-2.0
"""Keeps Orbax from asking TensorStore for JSON, which is never freed.

TensorStore (to 0.1.86 at least) gives every string and list within the JSON that it hands to Python
one reference too many. Orbax asks for such JSON at every save: twice for all figures of the store,
only to log them (20 KiB), and for each array for the description of a folder (15 KiB for 50
arrays). A run would keep all of it. `tests/test_checkpoint.py` counts what a save leaves behind.
"""

import tensorstore

_all_figures = tensorstore.experimental_collect_matching_metrics
_any_json = tensorstore.KvStore.Spec.to_json


def _figures(prefix: str, *args) -> list:
  return [] if prefix == '/tensorstore/kvstore/' else _all_figures(prefix, *args)


def _json(spec: tensorstore.KvStore.Spec, include_defaults: bool = False):
  plain = {'driver': 'file', 'path': spec.path}
  if not include_defaults and spec == tensorstore.KvStore.Spec(plain):
    return plain
  return _any_json(spec, include_defaults=include_defaults)


def install():
  """Replaces the two functions of TensorStore's, for the whole process."""
  tensorstore.experimental_collect_matching_metrics = _figures
  tensorstore.KvStore.Spec.to_json = _json
