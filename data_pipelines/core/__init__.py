# SPDX-License-Identifier: Apache-2.0
"""Errors, command lines, files, workers and progress of the data pipelines.

Imports no other room.
"""
