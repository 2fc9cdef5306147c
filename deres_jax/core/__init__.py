# SPDX-License-Identifier: Apache-2.0
"""Errors, command lines, files and the terminal: what every room may use.

Imports no other room and never knows what a model, a table or a run is.
"""
