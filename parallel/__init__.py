"""Where it runs: layout, process groups, Megatron-core layers and schedules, DeepSpeed ZeRO."""
