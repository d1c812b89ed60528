"""What reads autograd's graph, counts work, and keeps the process's state; it knows no layers."""
