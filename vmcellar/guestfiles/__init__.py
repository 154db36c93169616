"""Files inside the file systems of a point's disks, read by libguestfs in a small virtual machine of its own."""
