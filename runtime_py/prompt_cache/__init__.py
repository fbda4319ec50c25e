"""Keys and values of prompts on disk, so that the next start need not compute a long prompt's beginning again."""
