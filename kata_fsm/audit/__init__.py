# SPDX-License-Identifier: Apache-2.0
"""Who did what, and what became of it: the journal's records as normalised events for people and for log collectors.

`schema` defines the event, `events` derives them from a stream's records, `sentences` says them in words, `export` picks
and orders them. All of it reads and nothing acts.
"""
