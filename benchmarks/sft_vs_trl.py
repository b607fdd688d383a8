"""SFT steps, ours against TRL's, on SmolLM2-135M with LoRA: `python benchmarks/sft_vs_trl.py`.

4 prompts of 40 to 160 tokens with completions of 30 to 200, rank 16 on all linear layers, loss on
the completion, float32 on both sides (bfloat16 after it). The last line is one JSON object:
`ratio` is ours over theirs in useful tokens/s. Target: 1.5, `memory_ratio` at most 0.6.
"""

from versus_trl import main

if __name__ == "__main__":
    main("sft", ("ours", "trl"), __file__, __doc__)
