"""Networks in the form that serves: exported, compressed, fused, and how far events move them."""
