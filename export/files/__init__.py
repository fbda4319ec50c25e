"""Opening, replacing and locking files and folders that come from outside."""
