"""The laboratory: real guests, daemons and disks from Debian packages, for the demo, the tests and the benches."""
