"""Arrays of any library of the standard: namespaces, factorisations, products, constants."""
