# SPDX-License-Identifier: Apache-2.0
"""Raw click logs (or a planted teacher) to prepared folders of row blocks.

`python -m data_pipelines.build` writes a folder, `python -m data_pipelines.doctor` checks one.
The training code meets this package only in that folder; neither imports the other.
"""
