"""What paging, prefix reuse and KV quantisation save in memory and cost in time; run by benchmarks/ablation.py."""
