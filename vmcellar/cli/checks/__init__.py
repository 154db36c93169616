"""What `vmcellar doctor` looks at: each check says what it found and the remedy; all it writes is a probe file."""
