# SPDX-License-Identifier: Apache-2.0
"""Command lines, raw files, worker processes and progress of the data pipelines.

Imports deres_jax.core and no other room. Knows no format of data.
"""
