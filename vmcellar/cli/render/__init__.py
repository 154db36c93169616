"""How results look: tables for people, plain data for `--json`. No engine call is made here."""
