"""What `lorae bench` measures, one module per part: `measure(...)` gives plain data, `text(found)` a
table."""
