# SPDX-License-Identifier: Apache-2.0
"""TFDS description of the Avazu data."""

import tensorflow_datasets as tfds

from data_pipelines.tfds_blocks import BlockBuilder


class Avazu(BlockBuilder):
  """Avazu click-through rate challenge, encoded to per-field ids, in blocks of rows."""

  RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 (TFDS's own attribute)
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name=name, version=tfds.core.Version('1.0.0'), description=text)
    for name, text in (
      ('x4', 'Avazu_x4 style: random 8:1:1, hour, weekday and weekend, minimum count.'),
      ('x1', 'Avazu_x1 proportions, 7:1:2, in the order of time; 22 fields.'),
      ('time', '8:1:1 in the order of time; the fields of x4.'),
    )
  ]
  DESCRIPTION = (
    'Ten days of mobile-advertising logs from Avazu, published for a Kaggle challenge in 2014: a '
    'click label, the hour, and 21 categorical fields of site, app, device and banner. Clicks and '
    'non-clicks were subsampled by different strategies, so the click rate is not the true one.'
  )
  HOMEPAGE = 'https://www.kaggle.com/c/avazu-ctr-prediction'
  LICENCE = (
    'The rules of the Kaggle competition avazu-ctr-prediction: take it as for non-commercial use '
    'only, and do not redistribute the data.'
  )
  CITATION = """@misc{avazu-ctr-prediction,
  author = {Wang, Steve and Cukierski, Will},
  title = {Click-Through Rate Prediction},
  publisher = {Kaggle},
  year = {2014},
  url = {https://kaggle.com/competitions/avazu-ctr-prediction}
}"""
