# SPDX-License-Identifier: Apache-2.0
"""KuaiRand: logs with user and item tables, histories by user."""
