# SPDX-License-Identifier: Apache-2.0
"""Typed configuration, with the file that each setting came from."""
