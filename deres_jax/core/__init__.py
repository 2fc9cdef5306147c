# SPDX-License-Identifier: Apache-2.0
"""Errors, command lines, files and the terminal: shared by every room, and by data_pipelines.

Imports no other room and no JAX. Knows the JSON files of a run, but no model and no table.
"""
