# SPDX-License-Identifier: Apache-2.0
"""TFDS description of the Criteo display-advertising data (TFDS's own `criteo` is another)."""

import tensorflow_datasets as tfds

from data_pipelines.tfds_blocks import BlockBuilder


class CriteoDisplay(BlockBuilder):
  """Criteo display advertising challenge, encoded to per-field ids, in blocks of rows."""

  RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 (TFDS's own attribute)
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name=name, version=tfds.core.Version('1.0.0'), description=text)
    for name, text in (
      ('x4', 'Criteo_x4 style: random 8:1:1, bucketised numbers, minimum count.'),
      ('x1', 'Criteo_x1 proportions: random 7:2:1, bucketised numbers.'),
      ('time', '8:1:1 in the order of the file, which is chronological; bucketised numbers.'),
    )
  ]
  DESCRIPTION = (
    'Seven days of display-advertising logs from Criteo, published for a Kaggle challenge in '
    '2014: a click label, 13 integer fields and 26 hashed categorical fields. Clicks and '
    'non-clicks were subsampled at different rates, so the click rate is not the true one.'
  )
  HOMEPAGE = 'https://www.kaggle.com/c/criteo-display-ad-challenge'
  LICENCE = (
    "Criteo's terms of use for the Kaggle display advertising challenge: non-commercial use "
    'only, no redistribution of the data.'
  )
  CITATION = """@misc{criteo-display-ad-challenge,
  author = {Tien, Jean-Baptiste and joycenv and Chapelle, Olivier},
  title = {Display Advertising Challenge},
  publisher = {Kaggle},
  year = {2014},
  url = {https://kaggle.com/competitions/criteo-display-ad-challenge}
}"""
