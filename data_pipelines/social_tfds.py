# SPDX-License-Identifier: Apache-2.0
"""TFDS description of the KuaiRand logs."""

from data_pipelines.tfds_blocks import BlockBuilder


class Social(BlockBuilder):
  """KuaiRand impressions with behaviour sequences, encoded to ids, in blocks of rows."""

  name = 'social'
  RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 (TFDS's own attribute)
  DESCRIPTION = (
    'A month of impressions of the video platform Kuaishou: who was shown which video when, six '
    'kinds of positive feedback, and features of users and videos. Every row carries the last '
    'videos that its user responded to before it. Split by time.'
  )
  HOMEPAGE = 'https://kuairand.com'
  LICENCE = 'CC BY-SA 4.0; attribution: Gao et al., KuaiRand'
  CITATION = """@inproceedings{gao2022kuairand,
  title = {KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos},
  author = {Gao, Chongming and Li, Shijun and Zhang, Yuan and Chen, Jiawei and Li, Biao and
    Lei, Wenqiang and Jiang, Peng and He, Xiangnan},
  booktitle = {Proceedings of the 31st ACM International Conference on Information and Knowledge
    Management},
  series = {CIKM '22},
  pages = {3953--3957},
  year = {2022},
  doi = {10.1145/3511808.3557624}
}"""
