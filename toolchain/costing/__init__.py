"""What the commands of the cost model do: machines as they were asked for, their reports as tables and pages."""
