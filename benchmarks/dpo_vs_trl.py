"""DPO steps, ours against TRL's, on SmolLM2-135M with LoRA: `python benchmarks/dpo_vs_trl.py`.

4 pairs, prompts of 40 to 160 and completions of 30 to 200 tokens, rank 16 on all linear layers,
float32 on both sides (bfloat16 after it). The last line is one JSON object: `ratio` is ours over
theirs in useful tokens/s against TRL's defaults, `ratio_precomputed` against
`precompute_ref_log_probs`. Target: 3.0, 2.0, `memory_ratio` at most 0.6. About 7 minutes.
"""

from versus_trl import main

if __name__ == "__main__":
    main("dpo", ("ours", "trl", "trl_precomputed"), __file__, __doc__)
