"""What clients get: the objects and stream events of completions, chats and responses, made of what was generated."""
