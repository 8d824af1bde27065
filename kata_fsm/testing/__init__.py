# SPDX-License-Identifier: Apache-2.0
"""Helpers that are shipped for tests: our own, and those of whoever writes effect handlers or engine integrations."""
