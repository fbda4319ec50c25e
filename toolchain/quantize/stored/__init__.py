"""What a method returns for one matrix, and how it is stored."""
