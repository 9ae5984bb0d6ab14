"""Collections as they are published: one file each, a function from a `Source` to its entries, read one by one."""
