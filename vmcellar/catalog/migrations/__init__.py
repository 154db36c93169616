"""How the catalog's tables came to be, one file per change; run by code when a catalog is opened."""
