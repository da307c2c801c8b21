"""Programs of this project that are not installed with the package."""
