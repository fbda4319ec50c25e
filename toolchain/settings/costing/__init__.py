"""What is priced, and on how large a machine: the settings of the commands of the cost model."""
