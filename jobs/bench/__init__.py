"""What `lorae bench` measures, one module per part: `measure(...)` returns plain data, `text(found)` a table
for people."""
