# SPDX-License-Identifier: Apache-2.0
"""TFDS description of the Criteo 1TB click logs."""

from data_pipelines.tfds_blocks import BlockBuilder


class Criteo1tb(BlockBuilder):
  """Criteo 1TB click logs, encoded to per-field ids, in blocks of rows."""

  name = 'criteo_1tb'
  RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 (TFDS's own attribute)
  DESCRIPTION = (
    '24 days of display-advertising logs from Criteo: a click label, 13 integer fields and 26 '
    'hashed categorical fields. Clicks and non-clicks were subsampled at different rates, so the '
    'click rate is not the true one. The last day is validation (first half) and test (second '
    'half); the days before it are training. Integers are bucketised; a categorical id is the '
    "value's 32-bit hash modulo a cap, and there is no vocabulary of it."
  )
  HOMEPAGE = 'https://huggingface.co/datasets/criteo/CriteoClickLogs'
  LICENCE = 'CC BY-NC-SA 4.0; attribution: Criteo'
  CITATION = """@misc{criteo-1tb-click-logs,
  author = {{Criteo AI Lab}},
  title = {Criteo 1TB Click Logs dataset},
  url = {https://huggingface.co/datasets/criteo/CriteoClickLogs}
}"""
