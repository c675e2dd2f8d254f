#!/bin/sh
# Two "hosts" on one machine, network namespaces with an address each, share a run over TCP; its
# model must have the bits of one process. Needs root, iproute2 and Open MPI:
#     dev/hosts.sh [PROGRAM]
set -eu
program=$(realpath "${1:-./train_gpt2_rl}")
folder=$(mktemp -d)
trap 'ip netns del hosts1 2>/dev/null; ip netns del hosts2 2>/dev/null; rm -r "$folder"' EXIT

for n in 1 2; do ip netns add hosts$n; done
ip link add hosts-v1 netns hosts1 type veth peer name hosts-v2 netns hosts2
for n in 1 2; do
    ip -n hosts$n addr add 10.77.0.$n/24 dev hosts-v$n
    ip -n hosts$n link set hosts-v$n up
    ip -n hosts$n link set lo up
done

# What Open MPI calls in the place of ssh: agent HOST COMMAND.
cat >"$folder/agent" <<'AGENT'
#!/bin/sh
n=${1#10.77.0.}
shift
exec ip netns exec hosts$n unshare -u sh -c "hostname hosts$n; $*"
AGENT
chmod +x "$folder/agent"

flags="--device cpu --shards 2 --steps 3 --warmup-steps 30 --prompts 8 --group 4 --eval-prompts 8"
"$program" $flags --out "$folder/one" >/dev/null
"$folder/agent" 10.77.0.1 exec mpirun.openmpi --allow-run-as-root --mca plm_rsh_agent "$folder/agent" \
    --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
    -np 2 --host 10.77.0.1:1,10.77.0.2:1 "$program" $flags --out "$folder/two" | grep ^rank
ip netns exec hosts1 grep hosts-v1 /proc/net/dev | awk '{ printf "%.1f MB over the network\n", ($2 + $10) / 1e6 }'
cmp "$folder/one/checkpoints/step-000003/model.bin" "$folder/two/checkpoints/step-000003/model.bin"
cmp "$folder/one/checkpoints/step-000003/state.bin" "$folder/two/checkpoints/step-000003/state.bin"
echo "two hosts have the bits of one process"
