"""What is kept, see `lorae.store.store`. Whatever is read was possibly written by somebody else."""
