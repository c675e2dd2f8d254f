# A small model in the form of llm.c's scripts, made for the test of from_config.py.
make train_gpt2cu
out_dir="log_small"
while true; do
    mpirun -np 2 ./train_gpt2cu \
        -i "dev/data/fineweb10B/fineweb_train_*.bin" \
        -j "dev/data/fineweb10B/fineweb_val_*.bin" \
        -o $out_dir \
        -v 250 -s 20000 -g 144 \
        -h 1 -b 4 -t 64 -d 512 \
        -r 0 -z 1 -c 0.1 \
        -l 0.0006 -q 0.1 -u 2 -x 4 \
        -n 5000 -y 1 -nk 5 \
        -e "d6"
    sleep 1
done
