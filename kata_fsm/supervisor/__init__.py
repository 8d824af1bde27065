# SPDX-License-Identifier: Apache-2.0
"""The per-sandbox process: the only writer of its stream. See `main` for its life, `server` for its socket."""
