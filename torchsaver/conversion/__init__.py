"""From one checkpoint format to another, a tensor at a time: read, renamed, laid out, written."""
