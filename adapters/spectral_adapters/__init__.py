"""What the library plugs into: the command line, plots, tables and the demo."""
