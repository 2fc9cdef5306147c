# SPDX-License-Identifier: Apache-2.0
"""One run: step, loop, evaluation, checkpoints, logs, plan.

Imports every room below. Knows no data set, model or connector by name.
"""
