"""What `lorae bench` measures, a module for each part: `measure(...)` gives plain data, `text(found)` a
table for people."""
