# SPDX-License-Identifier: Apache-2.0
"""Turns raw click logs, or a planted teacher, into prepared folders of row blocks.

`python -m data_pipelines.build` writes a folder, `python -m data_pipelines.doctor` checks one.
Imports deres_jax.core and deres_jax.report and nothing else of deres_jax, in particular no JAX. The
training code imports nothing of this package: the two meet in a prepared folder.
"""
