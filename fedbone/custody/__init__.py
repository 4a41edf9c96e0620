"""What is kept, and who may read it: files at rest."""
