# SPDX-License-Identifier: Apache-2.0
"""KuaiRand: logs joined with user and video tables, and the history of each user."""
