"""What is stored beside the codes: low-rank terms and outliers."""
