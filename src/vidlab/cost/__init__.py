"""What a composed model costs: FLOPs, bytes and memory, and the rates of the machine that pays."""
