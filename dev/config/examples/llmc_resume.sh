./train_gpt2cu -e gpt2_124M_bf16.bin -b 2 -t 32 -x 3 -l 1e-4 -u 1 -c 0.0 -r 3 -qq 1
