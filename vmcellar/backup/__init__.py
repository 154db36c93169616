"""A backup, stage by stage: snapshot, export, release, compress, place, verify, commit; and what undoes a half of
one.
"""
