"""From float32 to float16 and int8."""
