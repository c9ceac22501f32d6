"""Models: families and specs, the catalog that finds one for a launch, and inspection of local files."""
