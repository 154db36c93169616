"""Policy: pure decisions over what there is; nothing here reads or writes anything."""
